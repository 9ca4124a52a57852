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

  @spec fault(pid(), {:close, non_neg_integer()} | {:delay, non_neg_integer()} | :silence) :: :ok
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
       heart_beat: Keyword.get(opts, :heart_beat, {1000, 1000}),
       rate: Keyword.get(opts, :rate, 0),
       body: Keyword.get(opts, :body, @default_body),
       replay: opts[:replay],
       # The subscriptions that get messages at the rate, or the recording: what plays it.
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
  def handle_call({:play, messages}, _from, state) do
    case act(messages, [], state) do
      {:noreply, state} -> {:reply, :ok, state}
      {:stop, reason, state} -> {:stop, reason, :ok, state}
    end
  end

  @impl true
  def handle_cast(:begin, state), do: {:noreply, receive_more(state)}
  def handle_cast({:act, actions}, state), do: act(actions, [], state)
  def handle_cast({:fault, :silence}, state), do: {:noreply, %{state | silent: true}}
  def handle_cast({:fault, {:delay, delay}}, state), do: {:noreply, %{state | delay: delay}}
  def handle_cast({:fault, {:close, 0}}, state), do: {:stop, :normal, state}
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
  def handle_info({:tick, id, destination, started, sent}, state)
      when is_map_key(state.fed, id) do
    due = div((now() - started) * state.rate, 1000)
    own = [{"subscription", id}, {"destination", destination}]
    ids = &[{"message-id", "tick-#{&1}"}, {"ack", "tick-#{&1}"}]
    batch = for n <- sent..(due - 1)//1, do: {:frame, :message, own ++ ids.(n), state.body}
    again({:tick, id, destination, started, due}, @tick, act(batch, [], state))
  end

  def handle_info({:tick, _id, _destination, _started, _sent}, state), do: {:noreply, state}

  def handle_info(:due, state) do
    {{:value, data}, delayed} = :queue.out(state.delayed)
    write_now(data, %{state | delayed: delayed})
  end

  # Returns when these messages are written, so that a recording cannot flood the connection.
  defp play(connection, messages), do: GenServer.call(connection, {:play, messages}, :infinity)

  defp again(event, after_ms, {:noreply, _state} = going_on) do
    Process.send_after(self(), event, after_ms)
    going_on
  end

  defp again(_event, _after_ms, stop), do: stop

  defp handle_frames([], state), do: {:noreply, receive_more(state)}

  defp handle_frames([%Frame{command: command} = frame | frames], %{version: nil} = state)
       when command in [:connect, :stomp] do
    version = negotiate(Frame.header(frame, "accept-version") || "1.0")

    case GenServer.call(state.broker, {:connect, version}) do
      nil ->
        connected = connect(frame, %{state | version: version})
        with {:noreply, state} <- connected, do: handle_frames(frames, state)

      message ->
        act([{:frame, :error, [{"message", message}], ""}, :close], [], state)
    end
  end

  defp handle_frames(_frames, %{version: nil} = state),
    do: act([{:frame, :error, [{"message", "not connected"}], ""}, :close], [], state)

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

  defp negotiate(accepted),
    do: Enum.find(["1.2", "1.1"], "1.0", &(&1 in String.split(accepted, ",", trim: true)))

  # Frames collect in `data`, the latest first, so that they are written at once.
  defp act(_actions, _data, %{silent: true} = state), do: {:noreply, state}
  defp act([], data, state), do: flush(data, state)
  defp act([:more | actions], data, state), do: act(actions, data, receive_more(state))

  defp act([:close | _actions], data, state) do
    # What waits is written before.
    waiting = :queue.to_list(state.delayed)

    with {:noreply, state} <- flush([data | Enum.reverse(waiting)], %{state | delay: 0}),
         do: {:stop, :normal, state}
  end

  defp act([{:subscribed, id, destination} | actions], data, state) do
    if state.rate > 0, do: send(self(), {:tick, id, destination, now(), 0})
    connection = self()

    replay =
      if state.replay, do: Replay.start(id, destination, state.replay, &play(connection, &1))

    act(actions, data, put_in(state.fed[id], replay))
  end

  defp act([{:unsubscribed, id} | actions], data, state) do
    {replay, fed} = Map.pop(state.fed, id)
    if replay, do: Replay.stop(replay)
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

  defp flush([], state), do: {:noreply, state}
  defp flush(data, state), do: data |> Enum.reverse() |> write(state)

  defp write(data, %{delay: 0} = state), do: write_now(data, state)

  defp write(data, state) do
    Process.send_after(self(), :due, state.delay)
    {:noreply, %{state | delayed: :queue.in(data, state.delayed)}}
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
