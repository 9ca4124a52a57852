defmodule Barytherium.Network.Sender do
  @moduledoc """
  Writes frames and the client's heart-beats to a connection.

  `Barytherium.Network` starts it. The callback process gets its pid with
  `{:barytherium, :connect, {:ok, sender_pid}}` and with every list of frames.

  Frames that wait while others are being written are then sent together, so throughput rises with
  load. The connection ends with `{:barytherium, :disconnect, reason}` when a write fails, when it
  takes longer than the option `send_timeout`, or when more bytes wait than the option
  `max_send_queue` allows.
  """
  use GenServer, restart: :temporary

  require Logger

  alias Barytherium.{Connection, Frame}
  alias Barytherium.Frame.Outgoing
  alias Barytherium.Network.{HeartBeat, Outbox, Writer}

  # Between frames an EOL is a heart-beat.
  @beat "\n"

  # Acknowledgements of a fast feed may wait in the mailbox in great number. Off the heap, they do
  # not make garbage collections longer.
  @spawn_options [spawn_opt: [message_queue_data: :off_heap]]

  # Indexes of the counters.
  @written_frames 1
  @waiting_bytes 2

  @doc false
  @spec start_link(pid(), Connection.socket(), :counters.counters_ref(), timeout()) ::
          GenServer.on_start()
  def start_link(network_pid, socket, counters, max_queue),
    do:
      GenServer.start_link(__MODULE__, {network_pid, socket, counters, max_queue}, @spawn_options)

  @doc false
  @spec new_counters() :: :counters.counters_ref()
  def new_counters, do: :counters.new(2, [])

  @doc false
  # `{frames written, bytes waiting}`.
  @spec counts(:counters.counters_ref()) :: {non_neg_integer(), non_neg_integer()}
  def counts(counters),
    do: {:counters.get(counters, @written_frames), :counters.get(counters, @waiting_bytes)}

  @doc """
  Writes `frames` in order and returns at once.

  Frames that are given between CONNECT and CONNECTED wait for CONNECTED, because the negotiated
  version decides how headers are escaped. Frames are lost if the sender has ended, or if the
  connection ends before they are written.

  Raises `ArgumentError` if `sender_pid` is not a pid, or for a frame that cannot be written (see
  `Barytherium.Frame.format/2`). If the negotiated version cannot escape a header that 1.2 could,
  the error is logged and all frames of this call are dropped.
  """
  @spec write(pid(), [Frame.t()]) :: :ok
  def write(sender_pid, frames) do
    {frames, cost} = prepare(sender_pid, frames)
    GenServer.cast(sender_pid, {:write, frames, cost})
  end

  @doc """
  Writes `frames` like `write/2`, and waits until the socket has taken them.

  After `:ok` the frames are in the buffers of the socket's driver and of the operating system. The
  peer may not have received them yet.

  Returns `{:error, reason}` if the frames could not be written. `reason` is the reason why the
  connection ended, or `:unescapable` for a header that the negotiated version cannot escape.

  A call between CONNECT and CONNECTED waits for CONNECTED. Apart from that it waits at most
  `send_timeout` for its own write and for each write before it.
  """
  @spec write(pid(), [Frame.t()], :sync) :: :ok | {:error, atom()}
  def write(sender_pid, frames, :sync), do: write_within(sender_pid, frames, :infinity)

  @doc false
  # The same, for at most `timeout` milliseconds. After that the frames may still be written.
  @spec write_within(pid(), [Frame.t()], timeout()) :: :ok | {:error, atom()}
  def write_within(sender_pid, frames, timeout) do
    {frames, cost} = prepare(sender_pid, frames)
    call(sender_pid, {:write, frames, cost}, timeout)
  end

  # Runs in the caller, so that a mistake raises there and not in the sender, which others use too.
  defp prepare(sender_pid, frames) when is_pid(sender_pid) and is_list(frames) do
    Enum.map_reduce(frames, 0, fn frame, sum ->
      {frame, cost} = Frame.prepare(frame)
      {frame, sum + cost}
    end)
  end

  defp prepare(sender_pid, _frames) when not is_pid(sender_pid) do
    raise ArgumentError,
          "the sender is #{inspect(sender_pid)}, and not the pid that came with " <>
            "{:barytherium, :connect, {:ok, sender_pid}}"
  end

  defp prepare(_sender_pid, frames),
    do: raise(ArgumentError, "not a list of frames: #{inspect(frames)}")

  @doc false
  # Tells the sender of the CONNECTED frame. Returns `{hb_send, hb_recv}`.
  @spec connected(pid(), Frame.t()) :: HeartBeat.pair()
  def connected(sender_pid, frame), do: GenServer.call(sender_pid, {:connected, frame}, :infinity)

  @doc false
  # Writes the queued frames and then, after CONNECTED, a DISCONNECT with these headers.
  @spec finish(pid(), Frame.frame_headers(), timeout()) :: :ok | {:error, atom()}
  def finish(sender_pid, headers, timeout), do: call(sender_pid, {:finish, headers}, timeout)

  defp call(sender_pid, request, timeout) do
    GenServer.call(sender_pid, request, timeout)
  catch
    :exit, {:timeout, _call} -> {:error, :timeout}
    :exit, _reason -> {:error, :closed}
  end

  @doc false
  # Queues a DISCONNECT. Before a CONNECT there is nothing to disconnect from.
  @spec disconnect(pid(), Frame.frame_headers()) :: :ok | :not_connected
  def disconnect(sender_pid, headers), do: GenServer.call(sender_pid, {:disconnect, headers})

  @doc false
  # Sends what the native side of TLS owes the peer: an alert, for example.
  @spec flush(pid()) :: :ok
  def flush(sender_pid), do: GenServer.cast(sender_pid, :flush)

  @doc false
  # Closes the socket for writing after the write in progress. `{:error, :timeout}`: the peer does not
  # read.
  @spec shutdown(pid(), timeout()) :: :ok | {:error, :timeout | :closed}
  def shutdown(sender_pid, timeout), do: call(sender_pid, :shutdown, timeout)

  @impl true
  def init({network_pid, socket, counters, max_queue}) do
    # A link does not end this process when the network ends with reason `:normal`.
    Process.monitor(network_pid)
    {:ok, writer} = Writer.start_link(socket)

    {:ok,
     %{
       network_pid: network_pid,
       writer: writer,
       counters: counters,
       max_queue: max_queue,
       version: nil,
       # The heart-beat header of CONNECT. CONNECT's other headers may hold credentials.
       heart_beat: [],
       # Writes between CONNECT and CONNECTED, the latest first; nil before and after.
       held: nil,
       held_cost: 0,
       # All other writes that wait.
       outbox: %Outbox{},
       # Callers that wait for the write in progress; nil if there is none.
       writing: nil,
       failed: nil,
       # Whether `disconnect/2` has queued a DISCONNECT.
       disconnecting: false,
       # The interval in which something must be written, and the time of the last write, in ms.
       interval: 0,
       last: 0
     }}
  end

  @impl true
  def handle_cast({:write, frames, cost}, state),
    do: {:noreply, accept({frames, cost, nil}, state)}

  def handle_cast(:flush, state) do
    Writer.flush(state.writer)
    {:noreply, state}
  end

  def handle_cast(_stray, state), do: {:noreply, state}

  @impl true
  def handle_call(:shutdown, from, state) do
    Writer.shutdown(state.writer, from)
    {:noreply, state}
  end

  def handle_call({:write, frames, cost}, from, state),
    do: {:noreply, accept({frames, cost, from}, state)}

  def handle_call({:connected, %Frame{} = frame}, _from, state) do
    {hb_send, _hb_recv} = agreed = HeartBeat.agree(state.heart_beat, frame.headers)
    held = Enum.reverse(state.held || [])
    interval = interval(hb_send)
    schedule_beat(interval)
    state = %{state | version: Frame.version(frame), interval: interval, last: now()}
    {:reply, agreed, %{state | held: nil, held_cost: 0}, {:continue, {:release, held}}}
  end

  def handle_call({:disconnect, _headers}, _from, %{version: nil, held: nil} = state),
    do: {:reply, :not_connected, state}

  def handle_call({:disconnect, headers}, _from, state) do
    write = disconnect_write(headers, nil)
    state = %{state | disconnecting: true}
    {:reply, :ok, if(state.held, do: keep(write, state), else: queue(write, state))}
  end

  def handle_call({:finish, _headers}, from, %{version: nil} = state),
    do: {:noreply, queue({[], 0, from}, drop_held(state))}

  def handle_call({:finish, _headers}, from, %{disconnecting: true} = state),
    do: {:noreply, queue({[], 0, from}, state)}

  def handle_call({:finish, headers}, from, state),
    do: {:noreply, queue(disconnect_write(headers, from), state)}

  def handle_call(_stray, _from, state), do: {:noreply, state}

  defp disconnect_write(headers, from) do
    {frame, cost} = Frame.prepare(%Frame{command: :disconnect, headers: headers})
    {[frame], cost, from}
  end

  @impl true
  def handle_continue({:release, held}, state),
    do: {:noreply, Enum.reduce(held, state, &queue/2)}

  @impl true
  def handle_info({:written, _result}, %{failed: reason} = state) when reason != nil,
    do: {:noreply, state}

  def handle_info({:written, :ok}, state) do
    Enum.each(state.writing, &GenServer.reply(&1, :ok))
    {:noreply, pump(%{state | writing: nil, last: now()})}
  end

  def handle_info({:written, {:error, reason}}, state), do: {:noreply, fail(reason, state)}

  # A heart-beat is due one interval after the last write.
  def handle_info(:beat, %{failed: nil, interval: interval} = state) do
    left = state.last + interval - now()

    cond do
      state.writing ->
        schedule_beat(interval)
        {:noreply, state}

      left > 0 ->
        schedule_beat(left)
        {:noreply, state}

      true ->
        Writer.write(state.writer, @beat)
        schedule_beat(interval)
        {:noreply, %{state | writing: []}}
    end
  end

  def handle_info({:DOWN, _monitor, :process, network, _reason}, %{network_pid: network} = state),
    do: {:stop, :shutdown, state}

  def handle_info(_stray, state), do: {:noreply, state}

  @doc false
  # Waiting frames may hold credentials.
  # A callback of GenServer since Elixir 1.17. OTP has called it before.
  @impl {:format_status, 1} in GenServer.behaviour_info(:callbacks)
  def format_status(status) do
    status
    |> Map.replace(:message, "...")
    |> Map.replace(:log, [])
    |> Map.replace_lazy(:state, &Map.drop(&1, [:outbox, :held, :writing]))
  end

  # Frames after CONNECT wait until the version is known, because it decides how headers are escaped.
  # The callback process may see CONNECTED earlier than this process.
  defp accept({frames, cost, from} = write, %{version: nil} = state) do
    case Enum.split_while(frames, &(&1.command not in [:connect, :stomp])) do
      {_frames, []} when state.held == nil ->
        enqueue(write, state)

      {_frames, []} ->
        hold(write, state)

      {before, [connect | rest]} ->
        heart_beat = Enum.filter(connect.headers, &match?({"heart-beat", _value}, &1))
        state = %{state | heart_beat: heart_beat, held: state.held || []}
        last? = rest == []
        state = enqueue({before ++ [connect], 0, if(last?, do: from)}, state)
        if last?, do: state, else: hold({rest, cost, from}, state)
    end
  end

  defp accept(write, state), do: enqueue(write, state)

  defp hold(write, state), do: admit(write, state, &keep(write, &1))

  defp keep({_frames, cost, _from} = write, state),
    do: count(%{state | held: [write | state.held], held_cost: state.held_cost + cost})

  defp drop_held(%{held: held} = state) do
    if held not in [nil, []],
      do: Logger.warning("Barytherium drops #{length(held)} writes: there was no CONNECTED")

    for {_frames, _cost, from} <- held || [], from, do: GenServer.reply(from, {:error, :closed})
    %{state | held: nil, held_cost: 0}
  end

  defp enqueue({[], 0, nil}, state), do: state
  defp enqueue(write, state), do: admit(write, state, &queue(write, &1))

  # Queues a write whatever waits already: it was admitted before, or it ends the connection.
  defp queue({_frames, _cost, from}, %{failed: reason} = state) when reason != nil,
    do: refuse(from, reason, state)

  defp queue(write, state) do
    {outbox, refused} = Outbox.put(state.outbox, write, state.version)
    drop(refused)
    pump(%{state | outbox: outbox})
  end

  defp refuse(from, reason, state) do
    from && GenServer.reply(from, {:error, reason})
    state
  end

  # A write may be larger than `max_queue` if nothing else waits.
  defp admit({_frames, _cost, from}, %{failed: reason} = state, _accept) when reason != nil,
    do: refuse(from, reason, state)

  defp admit({_frames, cost, from}, state, accept) do
    waiting = waiting(state)

    if cost > 0 and waiting > 0 and waiting + cost > state.max_queue do
      Logger.error(
        "Barytherium gives up a connection: #{waiting + cost} bytes wait to be written"
      )

      refuse(from, :enobufs, fail(:enobufs, state))
    else
      accept.(state)
    end
  end

  defp waiting(state), do: Outbox.bytes(state.outbox) + state.held_cost

  # Sends what is next, unless a write is in progress.
  defp pump(%{writing: nil, failed: nil} = state) do
    {next, outbox, refused} = Outbox.take(state.outbox, state.version)
    drop(refused)
    send_next(next, %{state | outbox: outbox})
  end

  defp pump(state), do: count(state)

  defp send_next(:empty, state), do: count(state)

  # Nothing is written, so the next heart-beat is not delayed.
  defp send_next(%{frames: 0, froms: froms}, state) do
    Enum.each(froms, &GenServer.reply(&1, :ok))
    pump(state)
  end

  defp send_next(%{data: data, frames: frames, froms: froms}, state) do
    Writer.write(state.writer, data)
    :counters.add(state.counters, @written_frames, frames)
    count(%{state | writing: froms})
  end

  # `write/2` accepted these because 1.2 can escape them, but the negotiated version cannot.
  defp drop(refused) do
    for {{frames, _cost, from}, frame, reason, header} <- refused do
      commands = Enum.map_join(frames, ", ", & &1.command)
      refusal = Outgoing.refusal(frame, reason, header)
      Logger.error("Barytherium dropped a write (#{commands}): #{refusal}")
      from && GenServer.reply(from, {:error, reason})
    end
  end

  # All later writes are lost. The network ends this process when it gets the message, so the callers
  # get their answers first.
  defp fail(reason, state) do
    reason = Connection.reason(reason)
    held = for {_frames, _cost, from} <- state.held || [], from, do: from

    for from <- (state.writing || []) ++ Outbox.froms(state.outbox) ++ held,
        do: GenServer.reply(from, {:error, reason})

    GenServer.cast(state.network_pid, {:barytherium, :send_failed, reason})
    count(%{state | failed: reason, outbox: %Outbox{}, held: nil, held_cost: 0, writing: nil})
  end

  defp count(state) do
    :counters.put(state.counters, @waiting_bytes, waiting(state))
    state
  end

  # We promised to send something every `hb_send` ms. Three quarters of that leave a margin.
  defp interval(0), do: 0
  defp interval(hb_send), do: max(div(hb_send * 3, 4), 1)

  defp schedule_beat(0), do: :ok
  defp schedule_beat(time), do: Process.send_after(self(), :beat, time)

  defp now, do: System.monotonic_time(:millisecond)
end
