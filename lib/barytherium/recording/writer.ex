defmodule Barytherium.Recording.Writer do
  @moduledoc false
  # Writes a recording, see `Barytherium.Recording`, in files of its own. What `append/2` has returned survives the end of
  # the VM; what `sync/1` has, the end of the machine.

  alias Barytherium.{Frame, Recording}

  # Bytes between two entries of the index.
  @between 1024 * 1024

  @magic Recording.magic()

  @enforce_keys [:path, :limit, :file, :index, :size, :indexed]
  # `size` is the offset of the next record, `indexed` that of the last one in the index.
  defstruct @enforce_keys

  @type t :: %__MODULE__{}

  @doc """
  Begins a recording, or goes on with one, in a new file. `limit` is the size in bytes from which on the next file is begun.
  """
  @spec open(Path.t(), pos_integer()) :: {:ok, t()} | {:error, Recording.reason() | :orphans}
  def open(path, limit) do
    case Recording.check(path) do
      :ok -> begin(path, limit, length(Recording.parts(path)) + 1)
      {:error, :enoent} -> if orphans?(path), do: {:error, :orphans}, else: begin(path, limit, 1)
      {:error, reason} -> {:error, reason}
    end
  end

  # Files of a recording whose first file is gone would be taken for parts of this one.
  defp orphans?(path), do: path |> Recording.part_path(2) |> File.exists?()

  defp begin(path, limit, number) do
    part = Recording.part_path(path, number)

    with {:ok, file} <- :file.open(part, [:write, :exclusive, :raw, :binary]),
         :ok <- :file.write(file, @magic),
         {:ok, index} <- :file.open(Recording.index(part), [:write, :raw, :binary]) do
      size = byte_size(@magic)

      {:ok,
       %__MODULE__{path: path, limit: limit, file: file, index: index, size: size, indexed: size}}
    else
      # Somebody else records to the same path.
      {:error, :eexist} -> begin(path, limit, number + 1)
      {:error, reason} -> {:error, reason}
    end
  end

  @spec append(t(), [{Recording.time(), Frame.t()}]) ::
          {:ok, t()} | {:error, Recording.reason() | :orphans}
  def append(%{size: size, limit: limit} = writer, entries) when size >= limit do
    with :ok <- close(writer),
         {:ok, writer} <- open(writer.path, limit),
         do: append(writer, entries)
  end

  def append(writer, entries) do
    {data, {index, size, indexed}} =
      Enum.map_reduce(entries, {[], writer.size, writer.indexed}, &encode/2)

    with :ok <- :file.write(writer.file, data),
         :ok <- :file.write(writer.index, Enum.reverse(index)),
         do: {:ok, %{writer | size: size, indexed: indexed}}
  end

  defp encode({time, frame}, {index, offset, indexed}) do
    data = Recording.encode(time, frame)
    size = offset + IO.iodata_length(data)

    if offset - indexed >= @between,
      do: {data, {[<<time::64, offset::64>> | index], size, offset}},
      else: {data, {index, size, indexed}}
  end

  @spec sync(t()) :: :ok | {:error, File.posix()}
  def sync(writer), do: :file.datasync(writer.file)

  @doc "Closes the files, after `sync/1`, whose result it returns."
  @spec close(t()) :: :ok | {:error, File.posix()}
  def close(writer) do
    synced = sync(writer)
    for file <- [writer.file, writer.index], do: :file.close(file)
    synced
  end
end
