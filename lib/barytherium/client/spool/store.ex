defmodule Barytherium.Client.Spool.Store do
  @moduledoc false
  # Keeps the publications of a spool in files of a directory, and gives them back in order. It is a process of its own,
  # because a disk may be slow, and the client waits for nobody.
  #
  # Publications are appended to the last file, a `Barytherium.Client.Spool.Segment`, and numbered. What the client has
  # settled is noted there too, and a file in which all are settled is deleted. Nothing else is written, so a kill
  # leaves an incomplete record at the end at worst, whose publication nobody was told of.
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
  alias Barytherium.{Frame, Native, Secret}

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
  # Milliseconds after which is read again what could not be: there may have been no descriptor left.
  @read_again 1_000

  @enforce_keys [:client, :directory, :lock, :segments]
  # `segments` are all files, in order. The last one is written if `file` is open, and has `size` bytes, of which not all
  # are on the disk if it is `dirty`. `next` is the number of the next publication, and nil until it is known; all before
  # `low` are settled, and that is noted of those before `noted`. `reader` is `{path, number, offset}`, where the last
  # reading has ended.
  defstruct @enforce_keys ++
              [
                file: nil,
                size: 0,
                low: 1,
                next: nil,
                noted: 1,
                dirty: false,
                timer: nil,
                reader: nil
              ]

  @typedoc "Who gets the result, the size, and the frames with their positions."
  @type publication :: {to :: term(), size :: pos_integer(), [{non_neg_integer(), Frame.t()}]}

  @type report ::
          {:recovered, Segment.sequence_number(), Segment.sequence_number()}
          | {:stored, pos_integer()}
          | {:not_stored, pos_integer(), File.posix()}
          | {:read, [{Segment.sequence_number(), publication()}], Segment.sequence_number()}

  @doc "Starts it for the calling process, with which it ends."
  @spec start(Path.t()) ::
          {:ok, pid()} | {:error, File.posix() | :locked | :enolck | :unknown_format}
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
    directory = Path.expand(directory)

    with :ok <- make(directory),
         {:ok, lock} <- lock(Path.join(directory, "lock"), @attempts),
         {:ok, segments} <- Segment.list(directory) do
      Process.link(client)
      store = %__MODULE__{client: client, directory: directory, lock: lock, segments: segments}
      {:ok, store, {:continue, :recover}}
    else
      {:error, reason} -> {:stop, {:shutdown, reason}}
    end
  end

  # Messages are not for everybody to read.
  defp make(directory) do
    if File.dir?(directory) do
      :ok
    else
      with :ok <- File.mkdir_p(directory), do: File.chmod(directory, 0o700)
    end
  end

  defp lock(path, attempts) do
    with :ok <- File.touch(path),
         {:error, :locked} when attempts > 1 <- Native.lock_file(path) do
      Process.sleep(@pause)
      lock(path, attempts - 1)
    end
  end

  @impl true
  def handle_continue(:recover, %{segments: segments} = store) do
    # Those before the first file are settled.
    first = with [{first, _path} | _more] <- segments, do: first, else: ([] -> 1)

    with {low, next, last} <- Enum.reduce_while(segments, {first, first, nil}, &recover/2),
         store = %{store | low: low, noted: low, next: max(low, next)},
         {:ok, store} <- go_on_with(last, store) do
      report({:recovered, low, store.next}, store)
      {:noreply, sync_later(store)}
    else
      {:error, reason} -> recover_again(reason, store)
    end
  end

  # There may have been no descriptor left.
  defp recover_again(reason, store) do
    log_error(reason, store)
    Process.sleep(@read_again)

    if Process.alive?(store.client),
      do: {:noreply, store, {:continue, :recover}},
      else: {:stop, :shutdown, store}
  end

  defp recover({first, path} = segment, {low, _next, _last}) do
    count = fn
      {:publication, _payload}, {low, next} -> {:cont, {low, next + 1}}
      {:settled, number}, {low, next} -> {:cont, {max(low, number), next}}
    end

    case Segment.reduce(segment, nil, {low, first}, count) do
      {:error, reason} ->
        {:halt, {:error, reason}}

      {why, {low, next}, offset} ->
        warn(why, path, offset)
        {:cont, {low, next, {segment, why, offset}}}
    end
  end

  # The last file goes on, unless something in it cannot be read. If that is its first publication, the next file has
  # the same name.
  defp go_on_with({segment, :end, offset}, store) do
    # Its end may not be on the disk yet.
    with {:ok, {file, size}} <- Segment.reopen(segment, offset),
         do: {:ok, %{store | file: file, size: size, dirty: true}}
  end

  defp go_on_with({{first, _path} = segment, {:damaged, _bytes}, _offset}, %{next: first} = store) do
    # What it has noted is noted again.
    with :ok <- Segment.set_aside(segment),
         do: {:ok, %{store | segments: List.delete(store.segments, segment), noted: 0}}
  end

  defp go_on_with(_none_or_damaged, store), do: {:ok, store}

  # A kill leaves the last record incomplete.
  defp warn({:damaged, bytes}, path, offset) do
    Logger.warning(
      "#{path}: the last #{bytes} bytes, from #{offset} on, were not written to their end, or are damaged; they are " <>
        "left out"
    )
  end

  defp warn(_whole, _path, _offset), do: :ok

  @impl true
  def handle_cast({:append, publication}, store) do
    publications = group([publication], elem(publication, 1))
    count = length(publications)
    records = for publication <- publications, do: Segment.encode(encode(publication))

    case write(records, roll(store)) do
      {:ok, store} ->
        report({:stored, count}, store)
        {:noreply, %{store | next: store.next + count}}

      {:error, reason, store} ->
        report({:not_stored, count, reason}, store)
        {:noreply, store}
    end
  end

  def handle_cast({:settled, low}, store), do: {:noreply, sync_later(%{store | low: low})}

  def handle_cast({:read, from, bytes}, store) do
    case read_records(from, bytes, store) do
      {:ok, publications, upto, reader} ->
        report({:read, publications, upto}, store)
        {:noreply, %{store | reader: reader}}

      {:error, reason} ->
        log_error(reason, store)
        Process.send_after(self(), {:read_again, from, bytes}, @read_again)
        {:noreply, store}
    end
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
  def handle_info(:sync, store), do: {:noreply, sync(%{store | timer: nil})}
  def handle_info({:read_again, from, bytes}, store), do: handle_cast({:read, from, bytes}, store)

  def handle_info({:EXIT, client, _reason}, %{client: client} = store),
    do: {:stop, :shutdown, store}

  def handle_info(_stray, store), do: {:noreply, store}

  @impl true
  def terminate(_reason, store) do
    store = sync(store)
    if store.file, do: :file.close(store.file)
  end

  @doc false
  # Messages hold bodies.
  # A callback of GenServer since Elixir 1.17. OTP has called it before.
  @impl {:format_status, 1} in GenServer.behaviour_info(:callbacks)
  defdelegate format_status(status), to: Secret, as: :without_messages

  defp report(report, store), do: send(store.client, {:spool, report})

  # Writing

  defp roll(%{file: file, size: size, next: next} = store)
       when file != nil and size >= @segment do
    # The name of the next file is the number of its first publication.
    {first, _path} = List.last(store.segments)
    if first < next, do: store |> to_disk() |> close(), else: store
  end

  defp roll(store), do: store

  defp close(store) do
    :file.close(store.file)
    %{store | file: nil}
  end

  defp write(data, %{file: nil} = store) do
    case Segment.create(store.directory, store.next) do
      {:ok, segment, {file, size}} ->
        write(data, %{store | segments: store.segments ++ [segment], file: file, size: size})

      {:error, reason} ->
        {:error, reason, store}
    end
  end

  defp write(data, %{file: file, size: size} = store) do
    case :file.write(file, data) do
      :ok ->
        {:ok, sync_later(%{store | size: size + IO.iodata_length(data), dirty: true})}

      {:error, reason} ->
        # A part of it may have been written.
        {:ok, ^size} = :file.position(file, size)
        :ok = :file.truncate(file)
        {:error, reason, store}
    end
  end

  defp sync_later(%{timer: nil} = store),
    do: %{store | timer: Process.send_after(self(), :sync, @sync_after)}

  defp sync_later(store), do: store

  # When everything is settled, nothing has to be noted.
  defp sync(%{low: next, next: next} = store) do
    store = if store.file, do: close(store), else: store
    Enum.each(store.segments, &Segment.delete/1)
    %{store | segments: [], noted: next, dirty: false, reader: nil}
  end

  # A full disk gets room first. What cannot be noted is noted later.
  defp sync(store), do: store |> delete_settled() |> note() |> to_disk()

  defp to_disk(%{dirty: false} = store), do: store

  defp to_disk(store) do
    with :ok <- :file.datasync(store.file),
         :ok <- Segment.sync_directory(store.directory),
         do: :ok,
         else: ({:error, reason} -> log_error(reason, store))

    %{store | dirty: false}
  end

  defp log_error(reason, store),
    do: Logger.error("#{store.directory} cannot be read or written: #{reason}")

  defp note(%{low: low, noted: low} = store), do: store

  defp note(%{low: low} = store) do
    case write(Segment.encode({:settled, low}), store) do
      {:ok, store} -> %{store | noted: low}
      {:error, _reason, store} -> sync_later(store)
    end
  end

  # Not the last file, in which there is something that is not settled.
  defp delete_settled(%{segments: segments, low: low} = store) do
    ends = segments |> Enum.drop(1) |> Enum.map(&elem(&1, 0))

    {settled, kept} =
      segments
      |> Enum.zip(ends ++ [:none])
      |> Enum.split_while(fn {_segment, end_} -> end_ <= low end)

    for {segment, _end} <- settled, do: Segment.delete(segment)
    %{store | segments: for({segment, _end} <- kept, do: segment)}
  end

  # Reading

  defp read_records(from, bytes, %{segments: segments} = store) do
    {before, later} = Enum.split_while(segments, fn {first, _path} -> first <= from end)
    {first, path} = segment = List.last(before)

    {number, offset} =
      case store.reader do
        {^path, ^from, offset} -> {from, offset}
        _elsewhere -> {first, nil}
      end

    read = &read_record(&1, &2, from, bytes)

    with {why, {number, publications, _size}, offset} <-
           Segment.reduce(segment, offset, {number, [], 0}, read) do
      # What is damaged is left out.
      behind = with [{first, _path} | _more] <- later, do: first, else: ([] -> store.next)
      upto = if why == :halted, do: number, else: behind
      {:ok, Enum.reverse(publications), upto, {path, number, offset}}
    end
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

  defp encode({to, size, frames}) do
    frames = for {position, frame} <- frames, do: {position, frame.headers, frame.body}
    {:publication, :erlang.term_to_binary({vm(), to_write(to), size, frames})}
  end

  defp decode(payload) do
    {vm, to, size, frames} = :erlang.binary_to_term(payload)

    frames =
      for {position, headers, body} <- frames,
          do: {position, %Frame{command: :send, headers: headers, body: body}}

    # The pid of another VM may be that of another process here.
    {if(vm == vm(), do: as_read(to)), size, frames}
  end

  # They are the same when the node gets a name.
  defp to_write({pid, reference, how}) when node(pid) == node(),
    do: {:erlang.pid_to_list(pid), :erlang.ref_to_list(reference), how}

  defp to_write(nobody_or_remote), do: nobody_or_remote

  defp as_read({pid, reference, how}) when is_list(pid),
    do: {:erlang.list_to_pid(pid), :erlang.list_to_ref(reference), how}

  defp as_read(nobody_or_remote), do: nobody_or_remote

  # When it was started, in nanoseconds.
  defp vm, do: {System.pid(), :erlang.system_info(:start_time) + :erlang.time_offset()}
end
