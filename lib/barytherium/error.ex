defmodule Barytherium.Error do
  @moduledoc """
  Why something could not be done by a `Barytherium.Client`, or why its connection has ended.

      case Barytherium.Client.publish(client, "/queue/a", "hello") do
        :ok -> :ok
        {:error, %Barytherium.Error{reason: :disconnected}} -> retry()
        {:error, error} -> Logger.error(Exception.message(error))
      end

  Reasons of requests:

    * `:disconnected` - there is no connection. Nothing was written;
    * `:not_written` - there was no room for it within the time-out, because the broker reads slowly. Nothing
      was written;
    * `:enospc`, and others of the file system - a message cannot be written to the files of the option `:spool`. It was
      not accepted;
    * `:unescapable` - the negotiated version of STOMP cannot write one of the headers. Nothing was written;
    * `:transaction_over` - the transaction has been committed or aborted. Nothing was written;
    * `:stale` - an acknowledgement of a message of an earlier connection, or of a subscription that has ended.
      Nothing was written, and the broker delivers the message again;
    * `:unacknowledgeable` - the broker has left out the header of a message that an acknowledgement names;
    * `:unsupported` - STOMP 1.0 has no NACK;
    * `:not_subscribed` - the subscription has ended;
    * `:not_durable` - the subscription cannot be deleted, because it is not durable. It goes on;
    * `:no_reply_to` - the message to reply to has no header `reply-to`;
    * `:closing` - another process closes the client already;
    * `:unconfirmed` - the connection ended before the broker's receipt. The broker may have carried the
      request out;
    * `:timeout` - no receipt, or no reply to a request, within the time-out. The broker may have carried the request
      out, or may still do so;
    * `:refused` - the broker answered with an ERROR frame, which is in `:frame`. If it does not say what it
      refused, and most brokers do not, all requests that wait get this answer, and the connection ends.

  Reasons of connections: `:refused` likewise; `:credentials`, if the function for the login or the passcode
  failed; `:silent`, after `max_silence` with `on_silence: :reconnect`; `:exception` or `:handler`, if a handler of a consumer has ended; and those of
  `Barytherium.Network`: `:closed`, `:timeout`, `:econnrefused` and so on.
  """

  alias Barytherium.{Frame, Text}

  defexception [:reason, :frame]

  @type t :: %__MODULE__{reason: atom(), frame: nil | Frame.t()}

  @doc false
  @spec new(atom() | Frame.t()) :: t()
  def new(%Frame{} = frame), do: %__MODULE__{reason: :refused, frame: frame}
  def new(reason) when is_atom(reason), do: %__MODULE__{reason: reason}

  # Bytes of the texts of an ERROR frame. Some brokers send a stack trace.
  @longest 500

  @texts %{
    disconnected: "there is no connection",
    not_written: "there was no room for it in time: the broker reads slowly",
    unescapable: "the negotiated version of STOMP cannot write one of the headers",
    transaction_over: "the transaction has been committed or aborted",
    stale: "the message is of an earlier connection, or its subscription has ended",
    unacknowledgeable: "the broker has left out the header that an acknowledgement names",
    unsupported: "STOMP 1.0 has no NACK",
    not_subscribed: "the subscription has ended",
    silent: "no message came for too long",
    not_durable: "the subscription is not durable, so there is nothing to delete",
    no_reply_to: "the message does not ask for a reply: it has no header reply-to",
    closing: "another process closes the client already",
    unconfirmed: "the connection ended before the broker's answer",
    timeout: "no answer in time",
    credentials: "the function for the login or the passcode failed",
    exception: "a callback raised",
    handler: "a handler has ended",
    closed: "the connection was closed",
    parse_error: "the peer does not speak STOMP",
    protocol_error: "the peer breaks the protocol of WebSocket",
    proxy_refused: "the proxy refuses the connection",
    upgrade_headers: "the function for the headers of the opening handshake failed",
    upgrade_refused: "the server refuses the WebSocket"
  }

  @impl true
  @spec message(t()) :: String.t()
  def message(%__MODULE__{reason: :refused, frame: %Frame{body: body} = frame}) do
    first_line = body |> String.split("\n", parts: 2) |> hd()
    "the broker says: " <> said(Frame.header(frame, "message", ""), first_line)
  end

  def message(%__MODULE__{reason: reason}), do: "#{@texts[reason] || posix(reason)} (#{reason})"

  @doc false
  # The `message` header of an ERROR, and the first line of its body. A broker may repeat what it does not
  # understand.
  @spec said(binary(), binary()) :: String.t()
  def said(message, first_line) do
    [message, first_line]
    |> Enum.map(&String.trim/1)
    |> Enum.reject(&(&1 == "" or String.contains?(String.downcase(&1), "passcode")))
    |> Enum.uniq()
    |> Enum.join(": ")
    |> binary_slice(0, @longest)
    |> Text.line()
  end

  defp posix(reason) do
    text = reason |> :inet.format_error() |> to_string()
    if text =~ "unknown POSIX error", do: "the connection failed", else: text
  end
end
