defmodule Barytherium.Client.Spool.Store do
  @moduledoc false
  # Keeps the publications of a spool in files of a directory, and gives them back in order. It is a process of its own,
  # because a disk may be slow, and the client waits for nobody.
  #
  # Publications are appended to the last file, a `Barytherium.Client.Spool.Segment`, and numbered. What the client has
  # settled is noted there too, and a file in which all are settled is deleted. Nothing else is written, so a kill
  # leaves an incomplete record at the end at worst, whose publication nobody was told of. A start begins a new file.
  #
  # The client gets `{:spool, report}`:
  #
  #   * `{:recovered, low, next}` - first: all before `low` are settled, and `next` is the number of the next one;
  #   * `{:stored, count}` - the first `count` of those that wait are written: they survive the end of the VM. Those that
  #     were written @sync_after ago survive the end of the machine;
  #   * `{:not_stored, count, reason}` - they are not, and have no number: the disk is full, for example;
  #   * `{:read, publications, upto}` - those before `upto` that can be read.
  use GenServer, restart: :temporary

  require Logger

  alias Barytherium.Client.Spool.Segment
  alias Barytherium.Frame
  alias Barytherium.Native

  # Bytes from which on a new file is begun.
  @segment 16 * 1024 * 1024
  # Bytes of publications that are written together.
  @group 1024 * 1024
  # Milliseconds in which writes are together brought to the disk, and in which is noted what is settled: after the end
  # of a VM, what was settled in them is sent once more.
  @sync_after 100
  # An earlier process, which is about to end, may have the directory: so many attempts, so many milliseconds apart.
  @attempts 40
  @pause 50

  @typedoc "Who gets the result, the size, and the frames with their positions."
  @type publication :: {to :: term(), size :: pos_integer(), [{non_neg_integer(), Frame.t()}]}

  @type report ::
          {:recovered, Segment.sequence_number(), Segment.sequence_number()}
          | {:stored, pos_integer()}
          | {:not_stored, pos_integer(), File.posix()}
          | {:read, [{Segment.sequence_number(), publication()}], Segment.sequence_number()}

  @doc "Starts it for the calling process, with which it ends."
  @spec start(Path.t()) :: {:ok, pid()} | {:error, File.posix() | :locked | :enolck}
  def start(directory) do
    with {:error, {:shutdown, reason}} <- GenServer.start(__MODULE__, {self(), directory}),
         do: {:error, reason}
  end

  @spec append(pid(), publication()) :: :ok
  def append(store, publication), do: GenServer.cast(store, {:append, publication})

  @doc "All publications before this number are settled."
  @spec settled(pid(), Segment.sequence_number()) :: :ok
  def settled(store, low), do: GenServer.cast(store, {:settled, low})

  @doc "Asks for about so many bytes of publications, and one at least."
  @spec read(pid(), Segment.sequence_number(), pos_integer()) :: :ok
  def read(store, from, bytes), do: GenServer.cast(store, {:read, from, bytes})

  @doc "Ends it, after what it was given."
  @spec stop(pid(), timeout()) :: :ok
  def stop(store, timeout) do
    GenServer.stop(store, :normal, timeout)
  catch
    :exit, _ended -> :ok
  end

  @impl true
  def init({client, directory}) do
    Process.flag(:trap_exit, true)
    path = Path.join(directory, "lock")

    with :ok <- File.mkdir_p(directory),
         :ok <- File.touch(path),
         {:ok, lock} <- lock(path, @attempts) do
      Process.link(client)

      state = %{
        client: client,
        directory: directory,
        lock: lock,
        # All files, in order, and the one that is written, which is the last one, if there is one yet.
        segments: Segment.list(directory),
        file: nil,
        size: 0,
        low: 1,
        next: 1,
        # The number that was noted last, whether something is not brought to the disk, and when it will be.
        noted: 1,
        dirty: false,
        timer: nil,
        # Where the last reading has ended: `{path, number, offset}`.
        reader: nil
      }

      {:ok, state, {:continue, :recover}}
    else
      {:error, reason} -> {:stop, {:shutdown, reason}}
    end
  end

  defp lock(path, attempts) do
    case Native.lock_file(path) do
      {:error, :locked} when attempts > 1 ->
        Process.sleep(@pause)
        lock(path, attempts - 1)

      result ->
        result
    end
  end

  @impl true
  def handle_continue(:recover, %{segments: segments} = state) do
    # Those before the first file are settled.
    first = with [{first, _path} | _more] <- segments, do: first, else: ([] -> 1)
    {low, next} = Enum.reduce(segments, {first, first}, &recover/2)
    # Files without a publication. The next one has the name of the last of them.
    {empty, segments} = Enum.split_with(segments, fn {first, _path} -> first >= next end)
    Enum.each(empty, &delete/1)
    state = %{state | segments: segments, low: low, noted: first, next: max(low, next)}
    report({:recovered, low, state.next}, state)
    {:noreply, sync_later(state)}
  end

  defp recover({first, path}, {low, _next}) do
    {why, {low, next}, offset} =
      Segment.reduce(path, nil, {low, first}, fn
        {:publication, _payload}, {low, next} -> {:cont, {low, next + 1}}
        {:settled, number}, {low, next} -> {:cont, {max(low, number), next}}
      end)

    if why == :damaged,
      do: Logger.error("#{path} is damaged at byte #{offset}: the messages behind it are lost")

    {low, next}
  end

  @impl true
  def handle_cast({:append, publication}, state) do
    publications = group([publication], elem(publication, 1))
    count = length(publications)
    records = for publication <- publications, do: Segment.encode(encode(publication))

    case write(records, roll(state)) do
      {:ok, state} ->
        report({:stored, count}, state)
        {:noreply, %{state | next: state.next + count}}

      {:error, reason, state} ->
        report({:not_stored, count, reason}, state)
        {:noreply, state}
    end
  end

  def handle_cast({:settled, low}, state), do: {:noreply, sync_later(%{state | low: low})}

  def handle_cast({:read, from, bytes}, state) do
    {publications, upto, reader} = read_records(from, bytes, state)
    report({:read, publications, upto}, state)
    {:noreply, %{state | reader: reader}}
  end

  # Those that have come meanwhile are written together.
  defp group(publications, bytes) when bytes < @group do
    receive do
      {:"$gen_cast", {:append, publication}} ->
        group([publication | publications], bytes + elem(publication, 1))
    after
      0 -> Enum.reverse(publications)
    end
  end

  defp group(publications, _bytes), do: Enum.reverse(publications)

  @impl true
  def handle_info(:sync, state), do: {:noreply, sync(%{state | timer: nil})}

  def handle_info({:EXIT, client, _reason}, %{client: client} = state),
    do: {:stop, :shutdown, state}

  def handle_info(_stray, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, state) do
    state = sync(state)
    if state.file, do: :file.close(state.file)
    # There is nothing to be found again.
    if state.low == state.next, do: Enum.each(state.segments, &delete/1)
  end

  @doc false
  # Messages hold bodies.
  # A callback of GenServer since Elixir 1.17. OTP has called it before.
  @impl {:format_status, 1} in GenServer.behaviour_info(:callbacks)
  def format_status(status), do: status |> Map.replace(:message, "...") |> Map.replace(:log, [])

  defp report(report, state), do: send(state.client, {:spool, report})

  # Writing

  defp roll(%{file: file, size: size} = state) when file != nil and size >= @segment do
    state = to_disk(state)
    :file.close(file)
    %{state | file: nil}
  end

  defp roll(state), do: state

  defp write(data, %{file: nil} = state) do
    case Segment.create(state.directory, state.next) do
      {:ok, segment, file, size} ->
        write(data, %{state | segments: state.segments ++ [segment], file: file, size: size})

      {:error, reason} ->
        {:error, reason, state}
    end
  end

  defp write(data, %{file: file, size: size} = state) do
    case :file.write(file, data) do
      :ok ->
        {:ok, sync_later(%{state | size: size + IO.iodata_length(data), dirty: true})}

      {:error, reason} ->
        # A part of it may have been written.
        {:ok, ^size} = :file.position(file, size)
        :ok = :file.truncate(file)
        {:error, reason, state}
    end
  end

  defp sync_later(%{timer: nil} = state),
    do: %{state | timer: Process.send_after(self(), :sync, @sync_after)}

  defp sync_later(state), do: state

  # A full disk gets room first. What cannot be noted is noted later.
  defp sync(state), do: state |> delete_settled() |> note() |> to_disk()

  defp to_disk(%{dirty: false} = state), do: state

  defp to_disk(state) do
    with {:error, reason} <- :file.datasync(state.file),
         do: Logger.error("#{state.directory} cannot be brought to the disk: #{reason}")

    %{state | dirty: false}
  end

  defp note(%{low: low, noted: low} = state), do: state
  # All files are deleted.
  defp note(%{segments: [], low: low} = state), do: %{state | noted: low}

  defp note(%{low: low} = state) do
    case write(Segment.encode({:settled, low}), state) do
      {:ok, state} -> %{state | noted: low}
      {:error, _reason, state} -> sync_later(state)
    end
  end

  # The last file is deleted only while it is not written.
  defp delete_settled(%{segments: segments, low: low, next: next, file: file} = state) do
    ends = segments |> Enum.drop(1) |> Enum.map(&elem(&1, 0))
    ends = ends ++ [if(file, do: :infinity, else: next)]

    {settled, kept} =
      segments |> Enum.zip(ends) |> Enum.split_while(fn {_segment, end_} -> end_ <= low end)

    for {segment, _end} <- settled, do: delete(segment)
    %{state | segments: for({segment, _end} <- kept, do: segment)}
  end

  defp delete({_first, path}), do: File.rm(path)

  # Reading

  defp read_records(from, bytes, %{segments: segments} = state) do
    {before, later} = Enum.split_while(segments, fn {first, _path} -> first <= from end)
    {first, path} = List.last(before)

    {number, offset} =
      with {^path, ^from, offset} <- state.reader,
           do: {from, offset},
           else: (_other -> {first, nil})

    {why, {number, publications, _size}, offset} =
      Segment.reduce(path, offset, {number, [], 0}, &read_record(&1, &2, from, bytes))

    # What is damaged is left out.
    behind = with [{first, _path} | _more] <- later, do: first, else: ([] -> state.next)
    upto = if why == :halted, do: number, else: behind
    {Enum.reverse(publications), upto, if(why in [:halted, :end], do: {path, number, offset})}
  end

  defp read_record({:publication, _payload}, {number, read, size}, from, _bytes)
       when number < from,
       do: {:cont, {number + 1, read, size}}

  defp read_record({:publication, payload}, {number, read, size}, _from, bytes) do
    publication = decode(payload)
    size = size + elem(publication, 1)
    acc = {number + 1, [{number, publication} | read], size}
    if size < bytes, do: {:cont, acc}, else: {:halt, acc}
  end

  defp read_record({:settled, _number}, acc, _from, _bytes), do: {:cont, acc}

  defp encode(publication), do: {:publication, :erlang.term_to_binary({vm(), publication})}

  defp decode(payload) do
    {vm, {to, size, frames}} = :erlang.binary_to_term(payload)
    # The pid of another VM may be that of another process here.
    {if(vm == vm(), do: to), size, frames}
  end

  defp vm, do: {System.pid(), :erlang.system_info(:start_time), :erlang.system_info(:creation)}
end
