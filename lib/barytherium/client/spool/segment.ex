defmodule Barytherium.Client.Spool.Segment do
  @moduledoc false
  # A file of a spool, see `Barytherium.Client.Spool.Store`. It is only appended to. It begins with `STOMPSPL` and the
  # byte 1. Then follow records, with numbers in network byte order:
  #
  # | bytes | |
  # | --- | --- |
  # | 4 | the size of the payload |
  # | 4 | CRC-32 of the kind and the payload |
  # | 1 | the kind: 0 for a publication, 1 for a number before which all publications are settled |
  # | size | the payload: a term, or 8 bytes |
  #
  # Publications are numbered one after the other. The file's name is the number of its first one.

  @magic <<"STOMPSPL", 1>>
  @head 9
  # Bytes that are read at once.
  @chunk 1024 * 1024
  @extension ".spool"
  # Digits, so that the names are in the order of the numbers.
  @digits 20

  @type sequence_number :: pos_integer()
  @type record :: {:publication, binary()} | {:settled, sequence_number()}
  @type t :: {first :: sequence_number(), Path.t()}

  @doc "The files of a directory, in order."
  @spec list(Path.t()) :: [t()]
  def list(directory) do
    for path <- directory |> Path.join("*" <> @extension) |> Path.wildcard() |> Enum.sort(),
        {first, ""} <- [path |> Path.basename(@extension) |> Integer.parse()],
        do: {first, path}
  end

  @doc "Makes the file for the publications from `first` on. Returns it open, and its size."
  @spec create(Path.t(), sequence_number()) ::
          {:ok, t(), :file.io_device(), pos_integer()} | {:error, File.posix()}
  def create(directory, first) do
    name = first |> Integer.to_string() |> String.pad_leading(@digits, "0")
    path = Path.join(directory, name <> @extension)

    with {:ok, file} <- :file.open(path, [:write, :exclusive, :raw, :binary]) do
      case :file.write(file, @magic) do
        :ok ->
          {:ok, {first, path}, file, byte_size(@magic)}

        error ->
          :file.close(file)
          File.rm(path)
          error
      end
    end
  end

  @spec encode(record()) :: iolist()
  def encode({:publication, payload}), do: encode(0, payload)
  def encode({:settled, number}), do: encode(1, <<number::64>>)

  defp encode(kind, payload),
    do: [<<byte_size(payload)::32, :erlang.crc32([kind, payload])::32, kind>>, payload]

  defp decode(0, payload), do: {:publication, payload}
  defp decode(1, <<number::64>>), do: {:settled, number}

  @doc """
  Calls `fun` with each record from `offset` on, or from the first one, until it answers `{:halt, acc}`. The result also
  says where the next record begins, and why it is over: `:incomplete` if the last record was not written to its end.
  """
  @spec reduce(
          Path.t(),
          nil | pos_integer(),
          acc,
          (record(), acc -> {:cont, acc} | {:halt, acc})
        ) :: {:halted | :end | :incomplete | :damaged, acc, pos_integer()}
        when acc: term()
  def reduce(path, offset, acc, fun) do
    offset = offset || byte_size(@magic)
    {:ok, file} = :file.open(path, [:read, :raw, :binary])

    try do
      {:ok, size} = :file.position(file, :eof)
      {:ok, _offset} = :file.position(file, min(offset, size))
      next(%{file: file, size: size, fun: fun}, <<>>, offset, acc)
    after
      :file.close(file)
    end
  end

  defp next(read, buffer, offset, acc) do
    case buffer do
      <<length::32, crc::32, kind, payload::binary-size(length), rest::binary>> ->
        if :erlang.crc32([kind, payload]) == crc,
          do: record(decode(kind, payload), read, rest, offset + @head + length, acc),
          else: {:damaged, acc, offset}

      <<length::32, _part::binary>> when offset + @head + length > read.size ->
        {:incomplete, acc, offset}

      <<length::32, _part::binary>> ->
        fill(@head + length - byte_size(buffer), read, buffer, offset, acc)

      <<>> when offset >= read.size ->
        {:end, acc, offset}

      _part when offset + byte_size(buffer) >= read.size ->
        {:incomplete, acc, offset}

      _part ->
        fill(@head, read, buffer, offset, acc)
    end
  end

  defp record(record, read, rest, offset, acc) do
    case read.fun.(record, acc) do
      {:cont, acc} -> next(read, rest, offset, acc)
      {:halt, acc} -> {:halted, acc, offset}
    end
  end

  defp fill(wanted, read, buffer, offset, acc) do
    {:ok, bytes} = :file.read(read.file, max(wanted, @chunk))
    next(read, buffer <> bytes, offset, acc)
  end
end
