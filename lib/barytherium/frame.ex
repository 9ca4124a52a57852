defmodule Barytherium.Frame do
  @moduledoc """
  A STOMP frame: a command, headers and a body.

      %Barytherium.Frame{
        command: :send,
        headers: [{"destination", "/queue/a"}],
        body: "hello"
      }

  `headers` is a list of `{name, value}`, unescaped and in the order on the wire. It includes
  repeated headers. Of those only the first counts (STOMP 1.2, "Repeated Header Entries");
  `headers_to_map/1` keeps only that one. Names, values and bodies may be any bytes. They need not
  be UTF-8.
  """

  alias Barytherium.{Native, ParseError, Schema}
  alias Barytherium.Frame.{Outgoing, ParseOptions}

  # Parsing this many bytes takes 0.25 ms. More is parsed on a dirty scheduler.
  @inline_data 16 * 1024

  @enforce_keys [:command]
  defstruct command: nil, headers: [], body: ""

  @type frame_command ::
          :stomp
          | :connect
          | :disconnect
          | :ack
          | :nack
          | :begin
          | :commit
          | :abort
          | :send
          | :subscribe
          | :unsubscribe
          | :connected
          | :error
          | :message
          | :receipt
  @type frame_headers :: [{binary(), binary()}]

  @typedoc """
  A body is a binary. With the option `inflate`, one that could not be inflated is as it was sent, with the reason:
  see `Barytherium.Network.start_link/4`.
  """
  @type frame_body ::
          binary()
          | {:compressed, binary(), :too_large | :damaged | :several_members | :trailing_bytes}
  @type t :: %__MODULE__{
          command: frame_command(),
          headers: frame_headers(),
          body: frame_body()
        }

  @typedoc "The version of STOMP, or `nil` before it is negotiated."
  @type version :: nil | String.t()

  @typedoc false
  # How headers are escaped: the version, and with it the `server` header of CONNECTED where that is known.
  @type dialect :: version() | {String.t(), binary()}

  @typedoc """
  The state of parsing a stream: the partial frame so far, the version and the limits. A state in
  the middle of a frame can be used only once, so always continue with the newest state.
  """
  @opaque parse_state :: %{
            decoder: nil | reference(),
            version: dialect(),
            offset: non_neg_integer(),
            limits: map()
          }

  @doc """
  Returns the value of a header, or `default` if the frame has none of that name. Of repeated headers
  the first counts (STOMP 1.2, "Repeated Header Entries").

      iex> message = %Barytherium.Frame{command: :message, headers: [{"a", "1"}, {"a", "2"}]}
      iex> Barytherium.Frame.header(message, "a")
      "1"
      iex> Barytherium.Frame.header(message, "b")
      nil
  """
  @spec header(t(), binary(), default) :: binary() | default when default: term()
  def header(%__MODULE__{headers: headers}, name, default \\ nil) do
    {_name, value} = List.keyfind(headers, name, 0, {name, default})
    value
  end

  @doc """
  Converts headers to a map. Of repeated headers it keeps the first.

      iex> Barytherium.Frame.headers_to_map([{"a", "1"}, {"a", "2"}])
      %{"a" => "1"}
  """
  @spec headers_to_map(frame_headers()) :: %{binary() => binary()}
  def headers_to_map(headers), do: headers |> Enum.reverse() |> Map.new()

  @doc """
  The state for the start of a stream.

  Options:

    * `:version` - `"1.0"`, `"1.1"`, `"1.2"` (the default), or `nil` for a stream that begins with a
      CONNECTED frame;
    * `:max_header_line`, `:max_headers`, `:max_body` and `:escapes` - as for
      `Barytherium.Network.start_link/4`.
  """
  @spec parse_state(keyword()) :: parse_state()
  def parse_state(opts \\ []) do
    {version, opts} = Keyword.pop(opts, :version, "1.2")
    parse_state(version, opts |> Schema.all!(ParseOptions.schema()) |> ParseOptions.limits())
  end

  # Headers of which it is known that they are no credentials.
  @harmless ~w(accept-version host heart-beat id destination ack receipt selector durable auto-delete x-queue-name
               prefetch-count consumer-window-size durable-subscription-name activemq.prefetchSize
               activemq.subscriptionName)

  @doc false
  # Sends frames that are written, without what may be a credential.
  @spec trace(pid(), [t()]) :: term()
  def trace(tap, frames),
    do: send(tap, {:barytherium, :trace, {:sent, Enum.map(frames, &traced/1), self()}})

  defp traced(%__MODULE__{command: command, headers: headers} = frame)
       when command in [:connect, :stomp, :subscribe] do
    %{
      frame
      | headers:
          for({name, value} <- headers, do: {name, if(name in @harmless, do: value, else: "...")})
    }
  end

  defp traced(frame), do: frame

  @doc false
  @spec parse_state(version(), map()) :: parse_state()
  def parse_state(version, limits),
    do: %{decoder: nil, version: version, offset: 0, limits: limits}

  @doc """
  Parses all frames in `data`, which continues the stream of `state`.

  Returns the complete frames, and the state for the data that follows. A partial frame is not an
  error. Data may come in pieces of any size; a partial frame is not parsed again from its start.
  A CONNECTED frame sets the version for the frames after it. A body of at least 64 KiB that makes
  up at least half of `data` is a part of `data` and not a copy.

  After an error the frames before it are in the error's `:frames`.

  Raises `ArgumentError` for a state in the middle of a frame that was used before.

      iex> {:ok, [frame], _state} = Barytherium.Frame.parse_all("MESSAGE\\na:b\\n\\nhi\\0")
      iex> {frame.headers, frame.body}
      {[{"a", "b"}], "hi"}
  """
  @spec parse_all(binary(), parse_state()) ::
          {:ok, [t()], parse_state()} | {:error, ParseError.t()}
  def parse_all(data, state \\ parse_state()) when is_binary(data) do
    case parse(data, state) do
      {frames, state, nil} -> {:ok, frames, state}
      {frames, _state, failure} -> {:error, ParseError.from_native(failure, frames)}
      :used -> raise_used()
    end
  end

  @doc false
  # Raises for a state that `parse_all/2` raises for.
  @spec check_parse_state!(parse_state()) :: parse_state()
  def check_parse_state!(state), do: if(Native.is_used(state), do: raise_used(), else: state)

  @spec raise_used() :: no_return()
  defp raise_used,
    do: raise(ArgumentError, "this parse state is not the newest one of its stream")

  defp parse(data, state) when byte_size(data) <= @inline_data do
    with :dirty <- Native.parse_inline(data, state), do: Native.parse(data, state)
  end

  defp parse(data, state), do: Native.parse(data, state)

  @doc """
  Encodes the frame for the wire.

  Headers are escaped according to `version`. A frame with a body gets a `content-length` header if
  it has none. With the header `{"content-length", false}` it gets none, which makes ActiveMQ deliver it as a text and not
  as bytes to JMS clients. Header names and values may be anything that `to_string/1` takes (`nil` is an empty
  value). The body may be iodata or `nil`.

  Raises `ArgumentError` for a frame that cannot be written:

    * the command is unknown;
    * a header name is empty;
    * the `content-length` header is not the length of the body, or `false` though the body has a NUL;
    * a header contains a line end, or a colon in its name, which `version` cannot escape: in 1.0
      nothing is escaped, and in CONNECT only backslashes are;
    * there is a body, and the command is not SEND, MESSAGE or ERROR (STOMP 1.2, "Body").

  The exception names the header but does not show its value.

      iex> frame = %Barytherium.Frame{command: :ack, headers: [{"id", "T_1:2"}]}
      iex> IO.iodata_to_binary(Barytherium.Frame.format(frame))
      "ACK\\nid:T_1\\\\c2\\n\\n\\0"
  """
  @spec format(t(), version()) :: iodata()
  def format(%__MODULE__{} = frame, version \\ "1.2") do
    {frame, cost} = prepare(frame)

    case Outgoing.encode([frame], cost, version) do
      {:ok, iodata} ->
        iodata

      {:error, {0, reason, header}} ->
        raise ArgumentError, Outgoing.refusal(frame, reason, header)
    end
  end

  @doc false
  # Converts what the frame holds to binaries. Returns it and the cost of encoding it. Raises as
  # `format/2` does for a frame that no version can write.
  @spec prepare(t()) :: {t(), pos_integer()}
  def prepare(%__MODULE__{command: command, headers: headers, body: body} = frame) do
    {headers, body, cost} = Outgoing.prepare(command, headers, body)
    {%{frame | headers: headers, body: body}, cost}
  end

  def prepare(other), do: raise(ArgumentError, "not a %Barytherium.Frame{}: #{inspect(other)}")

  @doc """
  Makes the ACK frame for a MESSAGE that was received in `version` (STOMP 1.2, "ACK").

  In 1.2 it uses the message's header `ack`, in 1.1 `message-id` and `subscription`, in 1.0
  `message-id`. `extra` are further headers, such as `receipt` or `transaction`.

  Raises `ArgumentError` if the message lacks such a header. In 1.2 this means that its subscription
  does not ask for acknowledgements.
  """
  @spec ack(t(), version(), frame_headers()) :: t()
  def ack(%__MODULE__{} = message, version \\ "1.2", extra \\ []),
    do: %__MODULE__{command: :ack, headers: ack_headers(message, version) ++ extra}

  @doc "Whether the frame is a MESSAGE with the headers that `ack/3` needs in `version`."
  @spec acknowledgeable?(t(), version()) :: boolean()
  def acknowledgeable?(%__MODULE__{command: command, headers: headers}, version \\ "1.2") do
    needed =
      case version do
        "1.0" -> ["message-id"]
        "1.1" -> ["message-id", "subscription"]
        _newer -> ["ack"]
      end

    command == :message and Enum.all?(needed, &List.keymember?(headers, &1, 0))
  end

  @doc """
  The version that a CONNECTED frame announces.

  It is 1.0 if the frame has no `version` header (STOMP 1.1, "Protocol Negotiation"). Blanks around
  it are ignored. An unknown version counts as 1.2.
  """
  @spec version(t()) :: String.t()
  def version(%__MODULE__{command: :connected} = frame) do
    version = announced_version(frame)
    if version in ["1.0", "1.1"], do: version, else: "1.2"
  end

  @doc false
  # The version that a CONNECTED frame announces. Some servers pad their headers.
  @spec announced_version(t()) :: binary()
  def announced_version(%__MODULE__{} = frame),
    do: frame |> header("version", "1.0") |> String.trim()

  @doc false
  # How headers are escaped after this CONNECTED frame.
  @spec dialect(t()) :: dialect()
  def dialect(%__MODULE__{command: :connected} = frame),
    do: {version(frame), header(frame, "server", "")}

  @doc "Makes the NACK frame for a MESSAGE, as `ack/3` does. Raises for 1.0, which has no NACK."
  @spec nack(t(), version(), frame_headers()) :: t()
  def nack(%__MODULE__{} = message, version \\ "1.2", extra \\ []) do
    if version == "1.0", do: raise(ArgumentError, "STOMP 1.0 has no NACK")
    %__MODULE__{command: :nack, headers: ack_headers(message, version) ++ extra}
  end

  defp ack_headers(message, "1.0"), do: [copied(message, "message-id", "message-id")]

  defp ack_headers(message, "1.1"),
    do: ack_headers(message, "1.0") ++ [copied(message, "subscription", "subscription")]

  defp ack_headers(message, _version), do: [copied(message, "ack", "id")]

  defp copied(%__MODULE__{command: command, headers: headers}, from, to) do
    case List.keyfind(headers, from, 0) do
      {_name, value} -> {to, value}
      nil -> raise ArgumentError, "this #{command} has no header #{from} to acknowledge it by"
    end
  end

  defimpl Inspect do
    # Crash reports and log lines show frames. They must not show credentials.
    def inspect(%{headers: headers} = frame, opts) do
      proper? = is_list(headers) and not List.improper?(headers)
      headers = if proper?, do: Enum.map(headers, &hide/1), else: :not_a_list
      Inspect.Any.inspect(%{frame | headers: headers}, opts)
    end

    defp hide({name, value}) do
      if secret?(name), do: {name, "..."}, else: {name, value}
    end

    defp hide(_other), do: :not_a_header

    defp secret?(name) when is_binary(name),
      do: String.downcase(String.trim(name)) in ["login", "passcode"]

    defp secret?(name) when is_atom(name), do: name |> Atom.to_string() |> secret?()

    defp secret?(name) when is_list(name),
      do: not List.improper?(name) and List.ascii_printable?(name) and secret?(to_string(name))

    defp secret?(_other), do: false
  end
end
