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
  @type entry :: {:publication, binary()} | {:settled, sequence_number()}
  @type t :: {first :: sequence_number(), Path.t()}
  @type open :: {:file.io_device(), size :: pos_integer()}

  @doc "The files of a directory, in order. One that was not even begun is none."
  @spec list(Path.t()) :: {:ok, [t()]} | {:error, File.posix() | :unknown_format}
  def list(directory) do
    with {:ok, names} <- File.ls(directory) do
      segments =
        for name <- Enum.sort(names),
            Path.extname(name) == @extension,
            {first, ""} <- [name |> Path.basename(@extension) |> Integer.parse()],
            do: {first, Path.join(directory, name)}

      check(segments, [])
    end
  end

  defp check([], checked), do: {:ok, Enum.reverse(checked)}

  defp check([{_first, path} = segment | segments], checked) do
    with {:ok, file} <- :file.open(path, [:read, :raw, :binary]) do
      read = :file.read(file, byte_size(@magic))
      :file.close(file)

      case read do
        {:ok, @magic} ->
          check(segments, [segment | checked])

        {:ok, part} when part != binary_part(@magic, 0, byte_size(part)) ->
          {:error, :unknown_format}

        {:error, reason} ->
          {:error, reason}

        _not_begun ->
          delete(segment)
          check(segments, checked)
      end
    end
  end

  @doc "Makes the file for the publications from `first` on."
  @spec create(Path.t(), sequence_number()) :: {:ok, t(), open()} | {:error, File.posix()}
  def create(directory, first) do
    name = first |> Integer.to_string() |> String.pad_leading(@digits, "0")
    path = Path.join(directory, name <> @extension)

    with {:ok, file} <- :file.open(path, [:write, :exclusive, :raw, :binary]),
         {:written, file, :ok} <- {:written, file, :file.write(file, @magic)} do
      {:ok, {first, path}, {file, byte_size(@magic)}}
    else
      {:written, file, error} ->
        :file.close(file)
        delete({first, path})
        error

      error ->
        error
    end
  end

  @doc "Brings the names of new files to the disk. Without them, what is in the files would be of no use."
  @spec sync_directory(Path.t()) :: :ok | {:error, File.posix()}
  def sync_directory(directory) do
    with {:ok, file} <- :file.open(directory, [:read, :raw, :directory]) do
      synced = :file.sync(file)
      :file.close(file)
      synced
    end
  end

  @doc "Goes on with a file of this size."
  @spec reopen(t(), pos_integer()) :: {:ok, open()} | {:error, File.posix()}
  def reopen({_first, path}, size) do
    with {:ok, file} <- :file.open(path, [:read, :write, :raw, :binary]),
         {:ok, ^size} <- :file.position(file, size),
         do: {:ok, {file, size}}
  end

  # Not through the VM's file server, which everybody uses.
  @spec delete(t()) :: :ok | {:error, File.posix()}
  def delete({_first, path}), do: :file.delete(path, [:raw])

  @doc "Keeps a file that is damaged from being read again. Its number may come again."
  @spec set_aside(t()) :: :ok | {:error, File.posix()}
  def set_aside({_first, path}),
    do: :file.rename(path, "#{path}.#{System.os_time(:millisecond)}.damaged")

  @spec encode(entry()) :: iolist()
  def encode({:publication, payload}), do: encode(0, payload)
  def encode({:settled, number}), do: encode(1, <<number::64>>)

  defp encode(kind, payload),
    do: [<<byte_size(payload)::32, :erlang.crc32([kind, payload])::32, kind>>, payload]

  defp decode(0, payload), do: {:publication, payload}
  defp decode(1, <<number::64>>), do: {:settled, number}

  @doc """
  Calls `fun` with each record from `offset` on, or from the first one, until it answers `{:halt, acc}`. The result also
  says where the next record begins, and why it is over: `{:damaged, bytes}` if so many bytes at the end are no records. The
  last one may not have been written to its end.
  """
  @spec reduce(
          t(),
          nil | pos_integer(),
          acc,
          (entry(), acc -> {:cont, acc} | {:halt, acc})
        ) ::
          {:halted | :end | {:damaged, pos_integer()}, acc, pos_integer()}
          | {:error, File.posix()}
        when acc: term()
  def reduce({_first, path}, offset, acc, fun) do
    offset = offset || byte_size(@magic)

    with {:ok, file} <- :file.open(path, [:read, :raw, :binary]) do
      try do
        {:ok, size} = :file.position(file, :eof)
        {:ok, _offset} = :file.position(file, min(offset, size))
        next(%{file: file, size: size, fun: fun}, <<>>, offset, acc)
      after
        :file.close(file)
      end
    end
  end

  defp next(read, buffer, offset, acc) do
    case buffer do
      <<length::32, crc::32, kind, payload::binary-size(length), rest::binary>> ->
        if :erlang.crc32([kind, payload]) == crc,
          do: record(decode(kind, payload), read, rest, offset + @head + length, acc),
          else: damaged(read, offset, acc)

      <<length::32, _part::binary>> when offset + @head + length > read.size ->
        damaged(read, offset, acc)

      <<length::32, _part::binary>> ->
        fill(@head + length - byte_size(buffer), read, buffer, offset, acc)

      <<>> when offset >= read.size ->
        {:end, acc, offset}

      _part when offset + byte_size(buffer) >= read.size ->
        damaged(read, offset, acc)

      _part ->
        fill(@head, read, buffer, offset, acc)
    end
  end

  defp damaged(read, offset, acc), do: {{:damaged, read.size - offset}, acc, offset}

  defp record(record, read, rest, offset, acc) do
    case read.fun.(record, acc) do
      {:cont, acc} -> next(read, rest, offset, acc)
      {:halt, acc} -> {:halted, acc, offset}
    end
  end

  defp fill(wanted, read, buffer, offset, acc) do
    case :file.read(read.file, max(wanted, @chunk)) do
      {:ok, bytes} -> next(read, buffer <> bytes, offset, acc)
      {:error, reason} -> {:error, reason}
    end
  end
end
