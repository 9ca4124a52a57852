defmodule Barytherium.Frame do
  @moduledoc """
  A STOMP frame: a command, headers and a body.

      %Barytherium.Frame{
        command: :send,
        headers: [{"destination", "/queue/a"}],
        body: "hello"
      }

  Headers are a list of names and values in the order of the wire, unescaped, repeated ones
  included. Of repeated headers only the first counts (STOMP 1.2, "Repeated Header Entries");
  `headers_to_map/1` follows that. Names, values and bodies are octets; they need not be UTF-8.
  """

  alias Barytherium.{Native, ParseError}
  alias Barytherium.Frame.Outgoing
  alias Barytherium.Network.Options

  # Data of this size is parsed in a quarter of a millisecond. More is not on an ordinary scheduler.
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
  @type frame_body :: binary()
  @type t :: %__MODULE__{
          command: frame_command(),
          headers: frame_headers(),
          body: frame_body()
        }

  @typedoc "A version of the protocol; `nil` before one is negotiated."
  @type version :: nil | String.t()

  @typedoc """
  Where parsing goes on: what has arrived of a frame, and how to read it. In the middle of a frame
  only the newest state of a stream can be gone on with.
  """
  @opaque parse_state :: %{
            decoder: nil | reference(),
            version: version(),
            offset: non_neg_integer(),
            limits: map()
          }

  @doc """
  Headers as a map; the first of repeated headers wins.

      iex> Barytherium.Frame.headers_to_map([{"a", "1"}, {"a", "2"}])
      %{"a" => "1"}
  """
  @spec headers_to_map(frame_headers()) :: %{binary() => binary()}
  def headers_to_map(headers), do: headers |> Enum.reverse() |> Map.new()

  @doc """
  The state to start parsing a stream with.

  Options: `:version`, `"1.0"`, `"1.1"`, `"1.2"` (the default) or `nil` for a stream that begins
  with a CONNECTED frame; and the limits of `Barytherium.Network.start_link/4`.
  """
  @spec parse_state(keyword()) :: parse_state()
  def parse_state(opts \\ []) do
    {version, opts} = Keyword.pop(opts, :version, "1.2")
    parse_state(version, opts |> Options.parsing() |> Options.limits())
  end

  @doc false
  @spec parse_state(version(), map()) :: parse_state()
  def parse_state(version, limits),
    do: %{decoder: nil, version: version, offset: 0, limits: limits}

  @doc """
  Parses all frames in `data`, which goes on where `state` ended.

  Returns the complete frames and the state for the data that follows; a partial frame is no
  error. Data may come in pieces of any size: none of it is looked at twice. A CONNECTED frame sets
  the version by which the frames after it are read. A body of at least 64 KiB that is half of
  `data` or more is a part of it, and not a copy.

  On an error, the frames before it are in the exception's `:frames`.

  Raises `ArgumentError` for a state in the middle of a frame that was gone on with before.

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
  # Raises for a state that `parse_all/2` would refuse.
  @spec check_parse_state!(parse_state()) :: parse_state()
  def check_parse_state!(state), do: if(Native.is_used(state), do: raise_used(), else: state)

  defp raise_used,
    do: raise(ArgumentError, "this parse state is not the newest one of its stream")

  defp parse(data, state) when byte_size(data) <= @inline_data do
    with :dirty <- Native.parse_inline(data, state), do: Native.parse(data, state)
  end

  defp parse(data, state), do: Native.parse(data, state)

  @doc """
  The frame's bytes, with headers escaped as `version` has it, and a `content-length` header
  where there is a body and no such header.

  Names and values of headers may be anything that `to_string/1` takes (`nil` is an empty value),
  and the body may be iodata or `nil`.

  Raises `ArgumentError` for a frame that cannot be written: an unknown command, an empty header
  name, a `content-length` that is not the body's, or a line end that `version` has no escape for
  (in a CONNECT frame, which is never escaped, for example). The message names the header, and not
  its value.

      iex> frame = %Barytherium.Frame{command: :ack, headers: [{"id", "T_1:2"}]}
      iex> IO.iodata_to_binary(Barytherium.Frame.format(frame))
      "ACK\\nid:T_1\\\\c2\\n\\n\\0"
  """
  @spec format(t(), version()) :: iodata()
  def format(%__MODULE__{} = frame, version \\ "1.2") do
    {frame, cost} = Outgoing.prepare(frame)

    case Outgoing.encode([frame], cost, version) do
      {:ok, iodata} ->
        iodata

      {:error, {0, reason, header}} ->
        raise ArgumentError, Outgoing.refusal(frame, reason, header)
    end
  end

  @doc """
  The ACK frame for a MESSAGE that was received in `version` (STOMP 1.2, "ACK"): 1.2 answers to
  the header `ack`, 1.1 to `message-id` and `subscription`, 1.0 to `message-id`.

  `extra` are further headers, such as `receipt` or `transaction`. Raises `ArgumentError` if the
  message lacks a header that its ACK needs: its subscription does not ask for acknowledgements.
  """
  @spec ack(t(), version(), frame_headers()) :: t()
  def ack(%__MODULE__{} = message, version \\ "1.2", extra \\ []),
    do: %__MODULE__{command: :ack, headers: ack_headers(message, version) ++ extra}

  @doc "Whether `ack/3` can make an ACK for it: a MESSAGE with the headers that it needs."
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
  The version that a CONNECTED frame announces: a server of 1.0 sends none (STOMP 1.1, "Protocol
  Negotiation"), and 1.2 is the closest to one that is not known.
  """
  @spec version(t()) :: version()
  def version(%__MODULE__{command: :connected, headers: headers}) do
    case List.keyfind(headers, "version", 0) do
      nil -> "1.0"
      {_name, version} when version in ["1.0", "1.1"] -> version
      {_name, _newer} -> "1.2"
    end
  end

  @doc "The NACK frame for a MESSAGE, as `ack/3`. STOMP 1.0 has none, and raises."
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
    # What a crash report or a log line shows of a frame must not hold credentials.
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
