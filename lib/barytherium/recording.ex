defmodule Barytherium.Recording do
  @moduledoc """
  What a subscription got, with times, in files: `mix barytherium.record` writes them, `mix barytherium.replay` and
  `Barytherium.TestBroker` play them.

      "feed.rec"
      |> Barytherium.Recording.stream()
      |> Enum.count(fn {_time, frame} -> frame.command == :message end)

  ## The file

  A recording begins with `STOMPREC` and the byte 1. Then follow records, with numbers in network byte order:

  | bytes | |
  | --- | --- |
  | 4 | the size of the frame |
  | 8 | when it came, in microseconds since 1970, UTC |
  | 4 | CRC-32 of the time and the frame |
  | size | the frame as STOMP 1.2 writes it, its final NUL included |

  The frames are each MESSAGE, with its headers and its body as they came, and before the messages of each connection its
  CONNECTED, and a SUBSCRIBE with the destination. Nothing else that was sent is recorded, so there are no passwords.

  Each file is written once: when a recording is continued, or a file has reached its size, the recording goes on in
  `feed.2.rec`, `feed.3.rec` and so on. Beside each file is an index, `feed.rec.index`: about each MiB the time (8 bytes)
  and the offset (8 bytes) of a record. It makes reading from a time on faster, and leads over what is damaged. It may be
  deleted.

  A record that was not written to its end, because the machine has crashed, or that is damaged, is left out, with all
  up to the next one that the index knows. That is a warning in the log.
  """

  require Logger

  alias Barytherium.Frame

  @magic <<"STOMPREC", 1>>
  # Bytes that are read at once.
  @chunk 256 * 1024
  # More than a recorder takes: a body of 100 MiB and its headers.
  @max_record 256 * 1024 * 1024
  # What was once received can be read, whatever the limits of the connection were.
  @no_limits [max_header_line: 1_000_000_000, max_headers: 1_000_000, max_body: 1_000_000_000]

  @typedoc "Microseconds since 1970, UTC."
  @type time :: integer()

  @type reason :: File.posix() | :not_a_recording

  @doc """
  The frames of the recording that begins in `path`, with their times: `{time, frame}`, in order.

  `from` leaves out what came before: a `DateTime`, or a time in microseconds. Raises `File.Error` if a file cannot be
  read, and `ArgumentError` if it is no recording.
  """
  @spec stream(Path.t(), DateTime.t() | time()) :: Enumerable.t()
  def stream(path, from \\ 0)
  def stream(path, %DateTime{} = from), do: stream(path, DateTime.to_unix(from, :microsecond))

  def stream(path, from) when is_integer(from) do
    check!(path)
    # Its options are checked here, and not for each frame.
    start = Frame.parse_state(@no_limits)

    path
    |> parts()
    |> Stream.flat_map(&part(&1, from))
    |> Stream.filter(fn {time, _payload} -> time >= from end)
    |> Stream.map(fn {time, payload} -> {time, decode(payload, start)} end)
  end

  @doc "Whether `path` is a recording."
  @spec check(Path.t()) :: :ok | {:error, reason()}
  def check(path) do
    with {:ok, file} <- :file.open(path, [:read, :raw, :binary]) do
      read = :file.read(file, byte_size(@magic))
      :file.close(file)

      case read do
        {:ok, @magic} -> :ok
        {:error, reason} -> {:error, reason}
        _other -> {:error, :not_a_recording}
      end
    end
  end

  defp check!(path) do
    case check(path) do
      :ok -> :ok
      {:error, :not_a_recording} -> raise ArgumentError, "this is no recording: #{path}"
      {:error, reason} -> raise File.Error, reason: reason, action: "read", path: path
    end
  end

  @doc false
  @spec magic() :: binary()
  def magic, do: @magic

  @doc false
  @spec index(Path.t()) :: Path.t()
  def index(path), do: path <> ".index"

  @doc false
  # The path of the file with this number.
  @spec part_path(Path.t(), pos_integer()) :: Path.t()
  def part_path(path, 1), do: path
  def part_path(path, n), do: "#{Path.rootname(path)}.#{n}#{Path.extname(path)}"

  @doc false
  # The files of a recording that exist.
  @spec parts(Path.t()) :: [Path.t()]
  def parts(path) do
    1
    |> Stream.iterate(&(&1 + 1))
    |> Stream.map(&part_path(path, &1))
    |> Enum.take_while(&File.regular?/1)
  end

  @doc false
  @spec encode(time(), Frame.t()) :: iolist()
  def encode(time, frame) do
    payload = payload(frame)
    crc = :erlang.crc32([<<time::64>>, payload])
    [<<IO.iodata_length(payload)::32, time::64, crc::32>> | payload]
  end

  # A frame that came without a `content-length` does not get one.
  defp payload(%Frame{body: body, headers: headers} = frame) do
    if body == "" or List.keymember?(headers, "content-length", 0) do
      Frame.format(frame)
    else
      head = IO.iodata_to_binary(Frame.format(%{frame | body: ""}))
      [binary_part(head, 0, byte_size(head) - 1), body, 0]
    end
  end

  defp decode(payload, start) do
    {:ok, [frame], _state} = Frame.parse_all(payload, start)
    frame
  end

  # The records of one file from a time on, or from a little before: `{time, payload}`.
  defp part(path, from), do: Stream.resource(fn -> open(path, from) end, &next/1, &close/1)

  # `size` is that of the file, `entries` what the index knows, and `buffer` what was read from `offset` on and is not
  # handed out. It is `:damaged` if no record begins at `offset`.
  defp open(path, from) do
    {:ok, file} = :file.open(path, [:read, :raw, :binary])
    size = File.stat!(path).size
    entries = entries(path)
    state = %{path: path, file: file, size: size, entries: entries, buffer: <<>>, offset: 0}
    # Records before that of an entry may have the same time.
    known = for {time, offset} <- Enum.reverse(entries), time < from, do: offset

    # An index may be of another file.
    Enum.find_value(known ++ [byte_size(@magic)], &begins(&1, state)) ||
      at(byte_size(@magic), state)
  end

  # The state there, if a record begins there.
  defp begins(offset, state), do: offset |> at(state) |> with_record()

  defp with_record(state) do
    case records(state, []) do
      {[_ | _], _state} -> state
      {[], %{buffer: :damaged}} -> nil
      {[], _state} -> if at_end?(state), do: nil, else: state |> fill() |> with_record()
    end
  end

  defp at(offset, state) do
    {:ok, ^offset} = :file.position(state.file, offset)
    %{state | offset: offset, buffer: <<>>}
  end

  @doc false
  # The entries of the index: `{time, offset}`.
  @spec entries(Path.t()) :: [{time(), pos_integer()}]
  def entries(path) do
    case File.read(index(path)) do
      {:ok, index} -> for <<time::64, offset::64 <- index>>, do: {time, offset}
      {:error, _none} -> []
    end
  end

  defp close(%{file: file}), do: :file.close(file)

  defp next(%{buffer: :damaged} = state), do: over_damage(state)

  defp next(state) do
    case records(state, []) do
      {[], %{buffer: :damaged} = state} -> over_damage(state)
      {[], state} -> if at_end?(state), do: {:halt, state}, else: next(fill(state))
      {records, state} -> {records, state}
    end
  end

  defp at_end?(%{offset: offset, size: size, buffer: buffer}),
    do: offset + byte_size(buffer) >= size

  # To the next record that the index knows.
  defp over_damage(%{offset: offset, path: path} = state) do
    Logger.warning("#{path} is damaged, or was not written to its end, at byte #{offset}")
    later = for {_time, entry} <- state.entries, entry > offset, do: entry

    state =
      Enum.find_value(later, &begins(&1, state)) || %{state | buffer: <<>>, offset: state.size}

    {[], state}
  end

  # Reads on: a large record at once.
  defp fill(%{file: file, buffer: buffer} = state) do
    wanted =
      case buffer do
        <<size::32, _rest::binary>> -> max(16 + size - byte_size(buffer), @chunk)
        _less -> @chunk
      end

    case :file.read(file, wanted) do
      {:ok, bytes} -> %{state | buffer: buffer <> bytes}
      :eof -> %{state | size: state.offset + byte_size(buffer)}
      {:error, reason} -> raise File.Error, reason: reason, action: "read", path: state.path
    end
  end

  # The records that are in the buffer.
  defp records(%{buffer: buffer, offset: offset, size: size} = state, records) do
    case buffer do
      # What was written since the reading began.
      _more when offset >= size ->
        {Enum.reverse(records), %{state | buffer: <<>>}}

      <<length::32, _rest::binary>> when length > @max_record or offset + 16 + length > size ->
        {Enum.reverse(records), %{state | buffer: :damaged}}

      <<length::32, time::64, crc::32, payload::binary-size(length), rest::binary>> ->
        if :erlang.crc32([<<time::64>>, payload]) == crc,
          do:
            records(%{state | buffer: rest, offset: offset + 16 + length}, [
              {time, payload} | records
            ]),
          else: {Enum.reverse(records), %{state | buffer: :damaged}}

      # Less than a record.
      _part when offset + byte_size(buffer) == size and buffer != <<>> ->
        {Enum.reverse(records), %{state | buffer: :damaged}}

      _part ->
        {Enum.reverse(records), state}
    end
  end
end
