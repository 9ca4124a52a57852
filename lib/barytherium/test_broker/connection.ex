defmodule Barytherium.TestBroker.Connection do
  @moduledoc false
  # The broker's side of one connection: bytes to frames and back, heart-beats, and faults on demand. What a frame does
  # is decided by the broker, which gets the frames, and says what to do.
  use GenServer, restart: :temporary

  alias Barytherium.Frame
  alias Barytherium.Network.HeartBeat
  alias Barytherium.TestBroker.{Replay, Session}

  # Milliseconds between two batches of messages to a subscription, if the broker has a rate.
  @tick 10
  @default_body String.duplicate("Lorem ipsum dolor sit amet. ", 10) |> binary_part(0, 256)

  @spec start(pid(), :gen_tcp.socket(), keyword()) :: GenServer.on_start()
  def start(broker, socket, opts), do: GenServer.start(__MODULE__, {broker, socket, opts})

  @doc "Starts reading. Call it when the process owns its socket."
  @spec begin(pid()) :: :ok
  def begin(connection), do: GenServer.cast(connection, :begin)

  @doc "Does these things. `:more` at the end: reads on."
  @spec act(pid(), [Session.action() | :more]) :: :ok
  def act(connection, actions), do: GenServer.cast(connection, {:act, actions})

  @spec fault(pid(), {:close, pos_integer()} | {:delay, non_neg_integer()} | :silence) :: :ok
  def fault(connection, fault), do: GenServer.cast(connection, {:fault, fault})

  @impl true
  def init({broker, socket, opts}) do
    Process.monitor(broker)

    {:ok,
     %{
       broker: broker,
       socket: socket,
       like: opts[:like],
       parse_state: Frame.parse_state(),
       version: nil,
       heart_beat: opts[:heart_beat] || {1000, 1000},
       rate: opts[:rate] || 0,
       body: opts[:body] || @default_body,
       replay: opts[:replay],
       # What feeds each subscription: the process that plays the recording, or the reference of the ticks.
       fed: %{},
       watchdog: nil,
       silence: 0,
       # Faults: how many frames it sends before it closes, the milliseconds that all waits, and what waits.
       left: :infinity,
       delay: 0,
       delayed: :queue.new(),
       silent: false
     }}
  end

  @impl true
  def handle_call({:play, id, messages}, {player, _tag}, state) do
    # Its subscription may have ended meanwhile.
    result = if state.fed[id] == player, do: act(messages, [], state), else: {:noreply, state}

    case result do
      {:noreply, state} -> {:reply, :ok, state}
      {:stop, reason, state} -> {:stop, reason, :ok, state}
    end
  end

  @impl true
  def handle_cast(:begin, state), do: {:noreply, receive_more(state)}
  def handle_cast({:act, actions}, state), do: act(actions, [], state)
  def handle_cast({:fault, :silence}, state), do: {:noreply, %{state | silent: true}}
  def handle_cast({:fault, {:delay, delay}}, state), do: {:noreply, %{state | delay: delay}}
  def handle_cast({:fault, {:close, left}}, state), do: {:noreply, %{state | left: left}}

  @impl true
  def handle_info({:DOWN, _monitor, :process, _broker, _reason}, s), do: {:stop, :normal, s}
  def handle_info({:tcp_closed, _socket}, state), do: {:stop, :normal, state}
  def handle_info({:tcp_error, _socket, _reason}, state), do: {:stop, :normal, state}
  # It reads on, because it could not see the close otherwise.
  def handle_info(_event, %{silent: true} = state), do: {:noreply, receive_more(state)}

  def handle_info({:tcp, _socket, data}, state) do
    case Frame.parse_all(data, state.parse_state) do
      {:ok, frames, parse_state} ->
        handle_frames(frames, state |> watch() |> Map.put(:parse_state, parse_state))

      {:error, error} ->
        message = {:frame, :error, [{"message", Exception.message(error)}], ""}
        act([message, :close], [], state)
    end
  end

  def handle_info({:watchdog, ref}, %{watchdog: {ref, _}} = state), do: {:stop, :normal, state}
  def handle_info({:watchdog, _stale}, state), do: {:noreply, state}
  def handle_info({:beat, every} = beat, state), do: again(beat, every, write("\n", state))

  # Sends all messages that are due since the subscription started, even if the timer is late.
  def handle_info({:tick, id, ref, {destination, started, sent}}, %{fed: fed} = state)
      when :erlang.map_get(id, fed) == ref do
    due = div((now() - started) * state.rate, 1000)
    own = [{"subscription", id}, {"destination", destination}]
    ids = &[{"message-id", "tick-#{&1}"}, {"ack", "tick-#{&1}"}]
    batch = for n <- sent..(due - 1)//1, do: {:frame, :message, own ++ ids.(n), state.body}
    again({:tick, id, ref, {destination, started, due}}, @tick, act(batch, [], state))
  end

  def handle_info(:due, state), do: write_due(now(), state)
  # The ticks of a subscription that has ended, and strays.
  def handle_info(_other, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, state), do: for({_id, feed} <- state.fed, do: stop_feed(feed))

  defp stop_feed(replay) when is_pid(replay), do: Replay.stop(replay)
  defp stop_feed(_ticks), do: true

  # Returns when these messages are written, so that a recording cannot flood the connection.
  defp play(connection, id, messages),
    do: GenServer.call(connection, {:play, id, messages}, :infinity)

  defp again(event, after_ms, {:noreply, _state} = going_on) do
    Process.send_after(self(), event, after_ms)
    going_on
  end

  defp again(_event, _after_ms, stop), do: stop

  defp handle_frames([], state), do: {:noreply, receive_more(state)}

  defp handle_frames([%Frame{command: command} = frame | frames], %{version: nil} = state)
       when command in [:connect, :stomp] do
    version = negotiate(Frame.header(frame, "accept-version") || "1.0")

    case version && GenServer.call(state.broker, {:connect, version}) do
      :ok ->
        connected = connect(frame, %{state | version: version})
        with {:noreply, state} <- connected, do: handle_frames(frames, state)

      nil ->
        refuse("Supported protocol versions are 1.0, 1.1, 1.2", state)

      {:error, message} ->
        refuse(message, state)
    end
  end

  defp handle_frames(_frames, %{version: nil} = state), do: refuse("not connected", state)

  # The broker's answer ends with `:more`.
  defp handle_frames(frames, state) do
    GenServer.cast(state.broker, {:frames, self(), frames})
    {:noreply, state}
  end

  defp connect(frame, state) do
    {sends, wants} = state.heart_beat
    own = [{"version", state.version}, {"heart-beat", "#{sends},#{wants}"}]
    {every, silence} = HeartBeat.agree(own, frame.headers)
    if every > 0, do: Process.send_after(self(), {:beat, every}, every)
    headers = own ++ [{"server", Session.server(state.like)}, {"session", "session"}]
    act([{:frame, :connected, headers, ""}], [], watch(%{state | silence: silence}))
  end

  defp negotiate(accepted) do
    accepted = accepted |> String.split(",") |> Enum.map(&String.trim/1)
    Enum.find(["1.2", "1.1", "1.0"], &(&1 in accepted))
  end

  defp refuse(message, state),
    do: act([{:frame, :error, [{"message", message}], ""}, :close], [], state)

  # Frames collect in `data`, the latest first, so that they are written at once.
  defp act(_actions, _data, %{silent: true} = state), do: {:noreply, state}
  defp act([], data, state), do: flush(data, state)
  defp act([:more | actions], data, state), do: act(actions, data, receive_more(state))

  defp act([:close | _actions], data, state) do
    # What waits is written before.
    waiting = for {_due, data} <- :queue.to_list(state.delayed), do: data

    with {:noreply, state} <- write_now([waiting | Enum.reverse(data)], state),
         do: {:stop, :normal, state}
  end

  defp act([{:subscribed, id, destination} | actions], data, state) do
    act(actions, data, put_in(state.fed[id], feed(id, destination, state)))
  end

  defp act([{:unsubscribed, id} | actions], data, state) do
    {feed, fed} = Map.pop(state.fed, id)
    stop_feed(feed)
    act(actions, data, %{state | fed: fed})
  end

  defp act([{:frame, command, headers, body} | actions], data, state) do
    frame = %Frame{command: command, headers: headers, body: body}
    data = [Frame.format(frame, state.version) | data]

    case state.left do
      :infinity -> act(actions, data, state)
      1 -> act([:close], data, state)
      left -> act(actions, data, %{state | left: left - 1})
    end
  end

  # What sends messages to a subscription, besides its queue.
  defp feed(id, destination, %{replay: %{} = replay}) do
    connection = self()
    Replay.start(id, destination, replay, &play(connection, id, &1))
  end

  defp feed(id, destination, %{rate: rate}) do
    ref = make_ref()
    if rate > 0, do: send(self(), {:tick, id, ref, {destination, now(), 0}})
    ref
  end

  defp flush([], state), do: {:noreply, state}
  defp flush(data, state), do: data |> Enum.reverse() |> write(state)

  defp write(data, %{delay: delay, delayed: delayed} = state) do
    if delay == 0 and :queue.is_empty(delayed) do
      write_now(data, state)
    else
      due = now() + delay
      Process.send_after(self(), :due, due, abs: true)
      {:noreply, %{state | delayed: :queue.in({due, data}, delayed)}}
    end
  end

  # In order, whatever the delay was when each was to be written.
  defp write_due(now, %{delayed: delayed} = state) do
    with {:value, {due, data}} when due <= now <- :queue.peek(delayed),
         {:noreply, state} <- write_now(data, %{state | delayed: :queue.drop(delayed)}) do
      write_due(now, state)
    else
      {:stop, reason, state} -> {:stop, reason, state}
      _nothing_due -> {:noreply, state}
    end
  end

  defp write_now(data, state) do
    case :gen_tcp.send(state.socket, data) do
      :ok -> {:noreply, state}
      {:error, _reason} -> {:stop, :normal, state}
    end
  end

  defp now, do: System.monotonic_time(:millisecond)

  defp receive_more(state) do
    :inet.setopts(state.socket, active: :once)
    state
  end

  # A client that sends nothing for twice the agreed interval is considered dead.
  defp watch(%{silence: 0} = state), do: state

  defp watch(%{silence: silence} = state) do
    with {_ref, timer} <- state.watchdog, do: Process.cancel_timer(timer)
    ref = make_ref()
    %{state | watchdog: {ref, Process.send_after(self(), {:watchdog, ref}, 2 * silence)}}
  end
end
