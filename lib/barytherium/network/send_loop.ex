defmodule Barytherium.Network.SendLoop do
  @moduledoc false
  # The process of `Barytherium.Network.Sender`.
  #
  #     write/2 ──────────────────────────────► outbox ──► writer ──► socket
  #     write/3 ──► admission, if there is no ──►
  #                 room in the outbox
  #
  # What is given between CONNECT and CONNECTED waits in `held` or in the admission.
  use GenServer, restart: :temporary

  require Logger

  alias Barytherium.{Connection, Frame, Secret}
  alias Barytherium.Frame.Outgoing
  alias Barytherium.Network.{Admission, HeartBeat, Outbox, WriteCounters, Writer}

  # Bytes of the writes that can wait for room. There is always another batch for the writer to take, and
  # an acknowledgement does not wait behind more than this.
  @window 1024 * 1024

  # The versions that a client without an `accept-version` header may be answered with. It has offered
  # none, and strictly speaking only 1.0.
  @versions ["1.0", "1.1", "1.2"]

  @impl true
  def init({network_pid, socket, counters, max_queue, peer}) do
    # A link does not end this process when the network ends with reason `:normal`.
    Process.monitor(network_pid)
    {:ok, writer} = Writer.start_link(socket)

    {:ok,
     %{
       network_pid: network_pid,
       writer: writer,
       counters: counters,
       max_queue: max_queue,
       # For the log.
       peer: peer,
       dialect: nil,
       # The headers of CONNECT that matter for CONNECTED. The others may hold credentials.
       connect_headers: [],
       # Writes between CONNECT and CONNECTED, the latest first; nil before and after.
       held: nil,
       held_cost: 0,
       # Writes that wait for room in the outbox, and all other writes that wait.
       admission: %Admission{},
       outbox: %Outbox{framing: Connection.framing(socket)},
       # Callers that wait for the write in progress; nil if there is none.
       writing: nil,
       writing_bytes: 0,
       failed: nil,
       # Who gets a copy of every frame.
       tap: nil,
       # Whether a DISCONNECT was queued.
       disconnecting: false,
       # The interval in which something must be written, and the time of the last write, in ms.
       interval: 0,
       last: 0
     }}
  end

  @impl true
  def handle_cast({:write, frames, cost}, state) when is_list(frames),
    do: {:noreply, accept({frames, cost, nil}, state)}

  def handle_cast({:submit, frames, cost, from, deadline}, state),
    do: {:noreply, request({frames, cost, from}, deadline, state)}

  def handle_cast({:tap, tap}, state), do: {:noreply, %{state | tap: tap}}

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

  def handle_call({:write, frames, cost, deadline}, from, state),
    do: {:noreply, request({frames, cost, from}, deadline, state)}

  def handle_call({:connected, %Frame{} = frame}, _from, state) do
    version = Frame.announced_version(frame)

    if version in offered(state.connect_headers) do
      {hb_send, _hb_recv} = agreed = HeartBeat.agree(state.connect_headers, frame.headers)
      held = Enum.reverse(state.held || [])
      interval = interval(hb_send)
      schedule_beat(interval)
      state = %{state | dialect: Frame.dialect(frame), interval: interval, last: now()}
      {:reply, agreed, %{state | held: nil, held_cost: 0}, {:continue, {:release, held}}}
    else
      Logger.error("#{state.peer} answered with STOMP #{inspect(version)}, which was not offered")
      {:reply, {0, 0}, fail(:unsupported_version, state)}
    end
  end

  def handle_call({:disconnect, _headers}, _from, %{dialect: nil, held: nil} = state),
    do: {:reply, :not_connected, state}

  def handle_call({:disconnect, headers}, _from, state) do
    write = disconnect_write(headers, nil)
    state = %{refuse_admission(state) | disconnecting: true}
    {:reply, :ok, if(state.held, do: keep(write, state), else: queue(write, state))}
  end

  def handle_call({:finish, _headers}, from, %{dialect: nil} = state),
    do: {:noreply, queue({[], 0, from}, state |> refuse_admission() |> drop_held())}

  def handle_call({:finish, _headers}, from, %{disconnecting: true} = state),
    do: {:noreply, queue({[], 0, from}, state)}

  def handle_call({:finish, headers}, from, state) do
    state = %{refuse_admission(state) | disconnecting: true}
    {:noreply, queue(disconnect_write(headers, from), state)}
  end

  def handle_call(_stray, _from, state), do: {:reply, {:error, :unknown_call}, state}

  # STOMP 1.1, "Protocol Negotiation".
  defp offered(connect_headers) do
    case List.keyfind(connect_headers, "accept-version", 0) do
      nil ->
        @versions

      {_name, versions} ->
        for v <- String.split(versions, ","), v = String.trim(v), v in @versions, do: v
    end
  end

  defp disconnect_write(headers, from) do
    {frame, cost} = Frame.prepare(%Frame{command: :disconnect, headers: headers})
    {[frame], cost, from}
  end

  @impl true
  def handle_continue({:release, held}, state),
    do: {:noreply, held |> Enum.reduce(state, &put/2) |> pump()}

  @impl true
  def handle_info({:written, _result}, %{failed: reason} = state) when reason != nil,
    do: {:noreply, state}

  def handle_info({:written, :ok}, state) do
    Enum.each(state.writing, &answer(&1, :ok))
    {:noreply, pump(%{state | writing: nil, writing_bytes: 0, last: now()})}
  end

  def handle_info({:written, {:error, reason}}, state), do: {:noreply, fail(reason, state)}

  # A write that waits for room has waited too long.
  def handle_info({:late, number}, state) do
    {write, admission} = Admission.give_up(state.admission, number)
    with {_frames, _cost, from} <- write, do: answer(from, {:error, :timeout})
    # Others may have waited behind it.
    {:noreply, pump(%{state | admission: admission})}
  end

  # Its caller has ended.
  def handle_info({{:gone, number}, _monitor, :process, _caller, _reason}, state) do
    {_write, admission} = Admission.give_up(state.admission, number)
    {:noreply, pump(%{state | admission: admission})}
  end

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
        Writer.beat(state.writer)
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
    |> Secret.without_messages()
    |> Map.replace_lazy(:state, &Map.drop(&1, [:admission, :outbox, :held, :writing]))
  end

  # A write whose caller can wait. Before CONNECT there is nothing to wait for.
  defp request({_frames, _cost, from}, _deadline, %{failed: reason} = state) when reason != nil,
    do: refuse(from, reason, state)

  defp request({_frames, _cost, from}, _deadline, %{disconnecting: true} = state),
    do: refuse(from, :closed, state)

  defp request(write, _deadline, %{dialect: nil, held: nil} = state), do: accept(write, state)

  defp request({_frames, cost, _from} = write, deadline, state) do
    if state.held == nil and Admission.empty?(state.admission) and room?(cost, state),
      do: queue(write, state),
      else: pump(%{state | admission: Admission.put(state.admission, write, deadline)})
  end

  # One such write is always let in, however large it is; but not behind a large one that is being written.
  defp room?(cost, %{outbox: %Outbox{requested: requested}} = state) do
    window = min(@window, state.max_queue)
    requested + cost <= window or (requested == 0 and state.writing_bytes <= window)
  end

  # Frames after CONNECT wait until the version is known, because it decides how headers are escaped.
  # The callback process may see CONNECTED earlier than this process.
  defp accept({_frames, _cost, from}, %{disconnecting: true} = state),
    do: refuse(from, :closed, state)

  defp accept({frames, cost, from} = write, %{dialect: nil} = state) do
    case Enum.split_while(frames, &(&1.command not in [:connect, :stomp])) do
      {_frames, []} when state.held == nil ->
        enqueue(write, state)

      {_frames, []} ->
        hold(write, state)

      {before, [connect | rest]} ->
        headers = Enum.filter(connect.headers, &(elem(&1, 0) in ["heart-beat", "accept-version"]))
        state = %{state | connect_headers: headers, held: state.held || []}
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

    for {_frames, _cost, from} <- held || [], do: answer(from, {:error, :closed})
    %{state | held: nil, held_cost: 0}
  end

  defp refuse_admission(state) do
    Enum.each(Admission.froms(state.admission), &answer(&1, {:error, :closed}))
    %{state | admission: %Admission{}}
  end

  defp enqueue({[], 0, nil}, state), do: state
  defp enqueue(write, state), do: admit(write, state, &queue(write, &1))

  # Queues a write whatever waits already: it was admitted before, or it ends the connection.
  defp queue({_frames, _cost, from}, %{failed: reason} = state) when reason != nil,
    do: refuse(from, reason, state)

  defp queue(write, state), do: write |> put(state) |> pump()

  defp put({frames, _cost, _from} = write, state) do
    if state.tap && frames != [], do: Frame.trace(state.tap, frames)
    {outbox, refused} = Outbox.put(state.outbox, write, state.dialect)
    drop(refused)
    %{state | outbox: outbox}
  end

  defp refuse(from, reason, state) do
    answer(from, {:error, reason})
    state
  end

  # Takes a write whose caller cannot wait. It may be larger than `max_queue` if nothing else waits.
  defp admit({_frames, _cost, from}, %{failed: reason} = state, _accept) when reason != nil,
    do: refuse(from, reason, state)

  defp admit({_frames, cost, from}, state, accept) do
    waiting = Outbox.bytes(state.outbox) - state.outbox.requested + state.held_cost

    if cost > 0 and waiting > 0 and waiting + cost > state.max_queue do
      Logger.error(
        "Barytherium gives up the connection to #{state.peer}: #{waiting + cost} bytes of Sender.write/2 wait to be " <>
          "written, and max_send_queue is #{state.max_queue}. They were given faster than the broker " <>
          "reads; Sender.write/3 waits for it"
      )

      refuse(from, :enobufs, fail(:enobufs, state))
    else
      accept.(state)
    end
  end

  # Sends what is next, unless a write is in progress.
  defp pump(%{writing: nil, failed: nil} = state) do
    {next, outbox, refused} = Outbox.take(state.outbox, state.dialect)
    drop(refused)
    send_next(next, %{state | outbox: outbox})
  end

  defp pump(state), do: count(state)

  defp send_next(:empty, state) do
    case let_in(state) do
      {:ok, state} -> pump(state)
      :nothing -> count(state)
    end
  end

  # Nothing is written, so the next heart-beat is not delayed.
  defp send_next(%{frames: 0, froms: froms}, state) do
    Enum.each(froms, &answer(&1, :ok))
    pump(state)
  end

  defp send_next(next, state) do
    Writer.write(state.writer, next.data)
    WriteCounters.add_written(state.counters, next.frames)
    count(let_all_in(%{state | writing: next.froms, writing_bytes: next.bytes}))
  end

  defp let_all_in(state) do
    with {:ok, state} <- let_in(state), do: let_all_in(state), else: (:nothing -> state)
  end

  # Lets a write in that waits for room, if there is room.
  defp let_in(%{held: nil} = state) do
    case Admission.take(state.admission, &room?(&1, state)) do
      {nil, _admission} -> :nothing
      {write, admission} -> {:ok, put(write, %{state | admission: admission})}
    end
  end

  defp let_in(_not_connected), do: :nothing

  # `write/2` accepted these because 1.2 can escape them, but the negotiated version cannot.
  defp drop(refused) do
    for {{frames, _cost, from}, frame, reason, header} <- refused do
      commands = Enum.map_join(frames, ", ", & &1.command)
      refusal = Outgoing.refusal(frame, reason, header)
      Logger.error("Barytherium dropped a write (#{commands}): #{refusal}")
      answer(from, {:error, reason})
    end
  end

  # All later writes are lost. The network ends this process when it gets the message, so the callers
  # get their answers first.
  defp fail(reason, state) do
    reason = Connection.reason(reason, state.peer)
    held = for {_frames, _cost, from} <- state.held || [], do: from
    waiting = Outbox.froms(state.outbox) ++ Admission.froms(state.admission)
    Enum.each((state.writing || []) ++ held ++ waiting, &answer(&1, {:error, reason}))
    GenServer.cast(state.network_pid, {:barytherium, :send_failed, reason})
    state = %{state | failed: reason, writing: nil, held: nil, held_cost: 0}
    count(%{state | outbox: %Outbox{}, admission: %Admission{}})
  end

  defp answer(nil, _result), do: :ok
  defp answer({:tag, _pid, _tag}, :ok), do: :ok
  defp answer({:report, pid, tag}, :ok), do: send(pid, {:written, tag})

  defp answer({how, pid, tag}, {:error, reason}) when how in [:tag, :report],
    do: send(pid, {:not_written, tag, reason})

  defp answer(from, result), do: GenServer.reply(from, result)

  defp count(state) do
    WriteCounters.put_waiting(state.counters, Outbox.bytes(state.outbox) + state.held_cost)
    state
  end

  # We promised to send something every `hb_send` ms. Three quarters of that leave a margin.
  defp interval(0), do: 0
  defp interval(hb_send), do: max(div(hb_send * 3, 4), 1)

  defp schedule_beat(0), do: :ok
  defp schedule_beat(time), do: Process.send_after(self(), :beat, time)

  defp now, do: System.monotonic_time(:millisecond)
end
