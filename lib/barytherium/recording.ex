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

  The frames are each MESSAGE, with its headers and its body as they came, and the CONNECTED of each connection before
  its messages. What was sent is not recorded, so there are no passwords.

  When a file has reached its size, the recording goes on in `feed.2.rec`, `feed.3.rec` and so on. Beside each file is
  an index, `feed.rec.index`: about each MiB the time (8 bytes) and the offset (8 bytes) of a record. It only makes
  reading from a time on faster, and may be deleted.

  A record that was not written to its end, because the machine has crashed, ends its file.
  """

  alias Barytherium.Frame

  @magic <<"STOMPREC", 1>>
  # Bytes that are read at once.
  @chunk 256 * 1024
  # Larger than any frame that the parser lets through: a body of 100 MiB and its headers.
  @max_record 512 * 1024 * 1024

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

    path
    |> parts()
    |> Stream.flat_map(&part(&1, from))
    |> Stream.filter(fn {time, _payload, _end} -> time >= from end)
    |> Stream.map(fn {time, payload, _end} -> {time, decode(payload)} end)
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

  defp decode(payload) do
    {:ok, [frame], _state} = Frame.parse_all(payload)
    frame
  end

  @doc false
  # The records of one file from a time on, or from a little before: `{time, payload, offset_of_its_end}`.
  @spec part(Path.t(), time() | :infinity) :: Enumerable.t()
  def part(path, from), do: Stream.resource(fn -> open(path, from) end, &next/1, &close/1)

  defp open(path, from) do
    {_time, offset} = path |> entries() |> Enum.take_while(&(elem(&1, 0) <= from)) |> List.last()
    {:ok, file} = :file.open(path, [:read, :raw, :binary])
    {:ok, ^offset} = :file.position(file, offset)
    {file, offset, <<>>}
  end

  @doc false
  # The entries of the index, `{time, offset}`, after one for the beginning.
  @spec entries(Path.t()) :: [{time(), pos_integer()}]
  def entries(path) do
    size = File.stat!(path).size

    index =
      case File.read(index(path)) do
        {:ok, index} -> for <<time::64, offset::64 <- index>>, offset < size, do: {time, offset}
        {:error, _none} -> []
      end

    [{0, byte_size(@magic)} | index]
  end

  defp close({file, _offset, _buffer}), do: :file.close(file)

  # `buffer` is what was read from `offset` on and is not handed out, or `:damaged`.
  defp next({_file, _offset, :damaged} = state), do: {:halt, state}

  defp next({file, offset, buffer}) do
    with {[], ^offset, rest} when is_binary(rest) <- records(buffer, offset, []),
         {:ok, bytes} <- :file.read(file, wanted(buffer)) do
      next({file, offset, buffer <> bytes})
    else
      {records, offset, rest} -> {records, {file, offset, rest}}
      :eof -> {:halt, {file, offset, buffer}}
    end
  end

  defp records(<<size::32, _rest::binary>>, offset, []) when size > @max_record,
    do: {[], offset, :damaged}

  defp records(
         <<size::32, time::64, crc::32, payload::binary-size(size), rest::binary>>,
         offset,
         records
       ) do
    if :erlang.crc32([<<time::64>>, payload]) == crc do
      ending = offset + 16 + size
      records(rest, ending, [{time, payload, ending} | records])
    else
      {Enum.reverse(records), offset, :damaged}
    end
  end

  defp records(rest, offset, records), do: {Enum.reverse(records), offset, rest}

  # How many bytes to read, so that a large record is read at once.
  defp wanted(<<size::32, _rest::binary>> = buffer),
    do: max(16 + size - byte_size(buffer), @chunk)

  defp wanted(_less), do: @chunk
end
