defmodule Barytherium.Recording.Writer do
  @moduledoc false
  # Writes a recording, see `Barytherium.Recording`. What `append/2` has returned survives the end of the VM; what
  # `sync/1` has, the end of the machine.

  alias Barytherium.{Frame, Recording}

  # Bytes between two entries of the index.
  @between 1024 * 1024

  @magic Recording.magic()

  @enforce_keys [:path, :limit, :number, :file, :index, :size, :indexed]
  # `size` is the offset of the next record, `indexed` that of the last one in the index.
  defstruct @enforce_keys

  @type t :: %__MODULE__{}

  @doc """
  Begins a recording, or goes on with one, at the end of its last file. `limit` is the size in bytes from which on the
  next file is begun.
  """
  @spec open(Path.t(), pos_integer()) :: {:ok, t()} | {:error, Recording.reason()}
  def open(path, limit), do: path |> Recording.parts() |> length() |> max(1) |> open(path, limit)

  defp open(number, path, limit) do
    part = Recording.part_path(path, number)

    with :ok <- begin(part),
         {size, indexed} <- ending(part),
         {:ok, file} <- open_at(part, size),
         {:ok, index} <- open_index(part) do
      {:ok,
       %__MODULE__{
         path: path,
         limit: limit,
         number: number,
         file: file,
         index: index,
         size: size,
         indexed: indexed
       }}
    end
  end

  # A file of which only a part of the first bytes was written is begun again.
  defp begin(part) do
    case File.stat(part) do
      {:ok, %{size: size}} when size >= byte_size(@magic) ->
        Recording.check(part)

      {:ok, %{size: size}} ->
        if torn?(part, size), do: write_magic(part), else: {:error, :not_a_recording}

      {:error, :enoent} ->
        write_magic(part)

      {:error, reason} ->
        {:error, reason}
    end
  end

  defp torn?(part, size), do: File.read(part) == {:ok, binary_part(@magic, 0, size)}
  defp write_magic(part), do: File.write(part, @magic)

  # The end of the last record that is whole, and the last entry of the index.
  defp ending(part) do
    {_time, indexed} = part |> Recording.entries() |> List.last()

    case last(part) do
      # An index that the crash has left behind says nothing.
      nil when indexed > byte_size(@magic) ->
        File.rm!(Recording.index(part))
        ending(part)

      nil ->
        {indexed, indexed}

      {_time, _payload, size} ->
        {size, indexed}
    end
  end

  # From the last entry of the index on.
  defp last(part),
    do: part |> Recording.part(:infinity) |> Enum.reduce(nil, fn record, _ -> record end)

  defp open_at(part, size) do
    with {:ok, file} <- :file.open(part, [:read, :write, :raw, :binary]),
         {:ok, ^size} <- :file.position(file, size),
         :ok <- :file.truncate(file),
         do: {:ok, file}
  end

  # Without what it says about records that are not there any more.
  defp open_index(part) do
    [_beginning | entries] = Recording.entries(part)

    with {:ok, index} <- :file.open(Recording.index(part), [:write, :raw, :binary]),
         :ok <- :file.write(index, for({time, offset} <- entries, do: <<time::64, offset::64>>)),
         do: {:ok, index}
  end

  @spec append(t(), [{Recording.time(), Frame.t()}]) :: {:ok, t()} | {:error, File.posix()}
  def append(%{size: size, limit: limit} = writer, entries) when size >= limit do
    close(writer)
    with {:ok, writer} <- open(writer.number + 1, writer.path, limit), do: append(writer, entries)
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

  @spec close(t()) :: :ok
  def close(writer) do
    for file <- [writer.file, writer.index], do: :file.close(file)
    :ok
  end
end
