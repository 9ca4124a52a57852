defmodule Barytherium.Client.Outbound do
  @moduledoc false
  # Checks what callers give a client to write, in the process of the caller, so that a mistake raises
  # there and not in the client, which others use too.

  require Logger

  alias Barytherium.{Frame, Text}

  # Headers that the client sets itself. Of repeated headers only the first would count.
  @reserved %{
    connect: ~w(accept-version host heart-beat login passcode),
    send: ~w(destination receipt transaction content-length),
    request: ~w(reply-to correlation-id),
    subscribe: ~w(id destination ack receipt),
    unsubscribe: ~w(id receipt),
    nack: ~w(id message-id subscription receipt transaction)
  }

  @doc """
  A SEND frame. `own` are headers that the client sets. With the option `persistent`, it asks the broker to keep the message
  over a restart, unless the message has a header of this name itself; without `content_length` it has no such header.
  """
  @spec send_frame(tuple(), map(), Frame.frame_headers()) :: Frame.t()
  def send_frame(message, options, own \\ [])

  def send_frame({destination, body}, options, own),
    do: send_frame({destination, body, []}, options, own)

  def send_frame({destination, body, headers}, options, own)
      when is_binary(destination) and destination != "" do
    check_headers!(:send, headers)
    own = own ++ [{"destination", destination} | without_length(options)]
    headers = own ++ persistent(options.persistent, headers)
    {frame, _cost} = Frame.prepare(%Frame{command: :send, headers: headers, body: body})
    frame
  end

  def send_frame(_other, _options, _own),
    do: raise(ArgumentError, "a message is {destination, body}, and the destination is a string")

  defp without_length(%{content_length: true}), do: []
  defp without_length(%{content_length: false}), do: [{"content-length", false}]

  defp persistent(true, headers) do
    if Enum.any?(headers, fn {name, _value} -> name == "persistent" end),
      do: headers,
      else: [{"persistent", "true"} | headers]
  end

  defp persistent(false, headers), do: headers

  # A receipt header is added to it when it is written.
  @receipt_cost 128

  @doc "The frames of one call with their positions, and what they take up while they wait, in bytes."
  @spec publication([Frame.t()]) :: {[{non_neg_integer(), Frame.t()}], pos_integer()}
  def publication(frames) do
    {frames, {_count, size}} =
      Enum.map_reduce(frames, {0, 0}, fn frame, {position, size} ->
        {frame, cost} = Frame.prepare(frame)
        {{position, frame}, {position + 1, size + cost + @receipt_cost}}
      end)

    {frames, size}
  end

  @doc "Adds the headers that the function of the configuration `:publish_headers` returns, which are those of a trace."
  @spec with_configured_headers([Frame.t()]) :: [Frame.t()]
  def with_configured_headers(frames) do
    case Application.get_env(:barytherium, :publish_headers) do
      nil -> frames
      {module, function, args} -> with_headers(frames, call(module, function, args))
    end
  end

  defp with_headers(frames, []), do: frames

  defp with_headers(frames, more) do
    for %Frame{headers: headers} = frame <- frames do
      new = Enum.reject(more, fn {name, _value} -> List.keymember?(headers, name, 0) end)
      %{frame | headers: headers ++ new}
    end
  end

  # A mistake there is no reason not to send the message.
  defp call(module, function, args) do
    headers = apply(module, function, args)
    :ok = check_headers!(:send, headers)
    {%Frame{headers: headers}, _cost} = Frame.prepare(%Frame{command: :send, headers: headers})
    Enum.uniq_by(headers, fn {name, _value} -> name end)
  catch
    kind, reason ->
      Logger.error(
        "Barytherium: the function in :publish_headers of its configuration failed (#{Text.failure(kind, reason)})"
      )

      []
  end

  @doc "Checks headers that are added to those of a frame that the client makes."
  @spec check_headers!(:connect | :send | :subscribe | :unsubscribe | :nack, term()) :: :ok
  def check_headers!(command, headers) do
    # Before the check of a length, which is not that of this body.
    if is_list(headers) and List.keymember?(headers, "content-length", 0),
      do: reserved!(headers, command)

    {%Frame{headers: headers}, _cost} = Frame.prepare(%Frame{command: command, headers: headers})
    reserved!(headers, command)
  end

  @doc "Checks the headers of a message that asks for a reply, besides what `send_frame/3` checks."
  @spec check_request!(term()) :: :ok
  def check_request!(headers) when is_list(headers), do: reserved!(headers, :request)
  def check_request!(_other), do: :ok

  defp reserved!(headers, command) do
    for {name, _value} <- headers, name in @reserved[command] do
      raise ArgumentError, "the header #{inspect(name)} of this #{command} is set by the client"
    end

    :ok
  end

  @doc "Checks messages that are acknowledged."
  @spec check_messages!(term()) :: [Frame.t()]
  def check_messages!(messages) do
    messages = if is_list(messages), do: messages, else: [messages]

    unless not List.improper?(messages) and Enum.all?(messages, &message?/1),
      do: raise(ArgumentError, "not a MESSAGE frame, nor a list of them")

    messages
  end

  defp message?(%Frame{command: :message, headers: headers}),
    do: is_list(headers) and not List.improper?(headers)

  defp message?(_other), do: false

  @doc "Checks a list of messages, but not the messages."
  @spec check_list!(term()) :: :ok
  def check_list!(messages) do
    unless Barytherium.Schema.valid?(:list, messages),
      do: raise(ArgumentError, "not a list of messages")

    :ok
  end

  @doc "Checks a time-out."
  @spec check_timeout!(term()) :: :ok
  def check_timeout!(timeout) do
    unless Barytherium.Schema.valid?(:time, timeout),
      do: raise(ArgumentError, "not a time-out in milliseconds: #{inspect(timeout)}")

    :ok
  end
end
