defmodule Barytherium.TestBroker.Client do
  @moduledoc false
  # The broker's side of one connection. Reads the client's frames and answers them.
  use GenServer, restart: :temporary

  alias Barytherium.Frame
  alias Barytherium.Network.HeartBeat

  # Milliseconds between two batches of messages to a subscription, if the broker has a rate.
  @tick 10
  @default_body String.duplicate("Lorem ipsum dolor sit amet. ", 10) |> binary_part(0, 256)

  @spec start(pid(), :gen_tcp.socket(), keyword()) :: GenServer.on_start()
  def start(broker, socket, opts), do: GenServer.start(__MODULE__, {broker, socket, opts})

  @doc "Starts reading. Call it when the process owns its socket."
  @spec begin(pid()) :: :ok
  def begin(client), do: GenServer.cast(client, :begin)

  @spec deliver(pid(), binary(), binary(), Frame.frame_headers(), binary(), non_neg_integer()) ::
          :ok
  def deliver(client, id, destination, headers, body, number),
    do: GenServer.cast(client, {:deliver, id, destination, headers, body, number})

  @impl true
  def init({broker, socket, opts}) do
    Process.monitor(broker)

    {:ok,
     %{
       broker: broker,
       socket: socket,
       parse_state: Frame.parse_state(),
       version: nil,
       heart_beat: Keyword.get(opts, :heart_beat, {1000, 1000}),
       rate: Keyword.get(opts, :rate, 0),
       body: Keyword.get(opts, :body, @default_body),
       # The SEND frames of each open transaction, the latest first.
       transactions: %{},
       watchdog: nil,
       silence: 0
     }}
  end

  @impl true
  def handle_cast(:begin, state), do: {:noreply, receive_more(state)}

  def handle_cast({:deliver, id, destination, headers, body, number}, state),
    do: state |> message(id, destination, headers, body, number) |> send_data(state)

  @impl true
  def handle_info({:tcp, _socket, data}, state) do
    case Frame.parse_all(data, state.parse_state) do
      {:ok, frames, parse_state} ->
        handle_frames(frames, state |> watch() |> Map.put(:parse_state, parse_state))

      {:error, error} ->
        send_data(format(state, :error, [{"message", Exception.message(error)}]), state)
        {:stop, :normal, state}
    end
  end

  def handle_info({:tcp_closed, _socket}, state), do: {:stop, :normal, state}
  def handle_info({:tcp_error, _socket, _reason}, state), do: {:stop, :normal, state}
  def handle_info({:DOWN, _monitor, :process, _broker, _reason}, s), do: {:stop, :normal, s}
  def handle_info({:watchdog, ref}, %{watchdog: {ref, _}} = state), do: {:stop, :normal, state}
  def handle_info({:watchdog, _stale}, state), do: {:noreply, state}
  def handle_info({:beat, _every} = beat, state), do: again(beat, send_data("\n", state))

  # Sends all messages that are due since the subscription started, even if the timer is late.
  def handle_info({:tick, id, destination, started, sent}, state) do
    due = div((now() - started) * state.rate, 1000)
    message = &message(state, id, destination, [], state.body, "tick-#{&1}")
    batch = for n <- sent..(due - 1)//1, do: message.(n)
    again({:tick, id, destination, started, due}, send_data(batch, state))
  end

  defp again(event, {:noreply, _state} = going_on) do
    Process.send_after(self(), event, interval(event))
    going_on
  end

  defp again(_event, stop), do: stop

  defp interval({:beat, every}), do: every
  defp interval({:tick, _id, _destination, _started, _sent}), do: @tick

  defp handle_frames([], state), do: {:noreply, receive_more(state)}

  defp handle_frames([%Frame{command: command, headers: headers} = frame | frames], state) do
    with {:noreply, state} <- handle_frame(command, Map.new(headers), frame, state),
         {:noreply, state} <- receipt(List.keyfind(headers, "receipt", 0), state) do
      if command == :disconnect, do: {:stop, :normal, state}, else: handle_frames(frames, state)
    end
  end

  defp handle_frame(command, headers, frame, %{version: nil} = state)
       when command in [:connect, :stomp] do
    version = negotiate(Map.get(headers, "accept-version", "1.0"))
    {sends, wants} = state.heart_beat
    own = [{"version", version}, {"heart-beat", "#{sends},#{wants}"}]
    {every, silence} = HeartBeat.agree(own, frame.headers)
    if every > 0, do: Process.send_after(self(), {:beat, every}, every)
    state = watch(%{state | version: version, silence: silence})
    send_data(format(state, :connected, own ++ [{"server", "Barytherium.TestBroker"}]), state)
  end

  defp handle_frame(_command, _headers, _frame, %{version: nil} = state) do
    send_data(format(state, :error, [{"message", "not connected"}]), state)
    {:stop, :normal, state}
  end

  defp handle_frame(:subscribe, %{"id" => id, "destination" => destination} = headers, _, state) do
    ack = Map.get(headers, "ack", "auto")
    :ok = GenServer.call(state.broker, {:subscribe, destination, id, ack})
    if state.rate > 0, do: send(self(), {:tick, id, destination, now(), 0})
    {:noreply, state}
  end

  defp handle_frame(:unsubscribe, %{"id" => id}, _frame, state) do
    :ok = GenServer.call(state.broker, {:unsubscribe, id})
    {:noreply, state}
  end

  defp handle_frame(:begin, %{"transaction" => id}, _frame, state),
    do: {:noreply, put_in(state.transactions[id], [])}

  defp handle_frame(:send, %{"transaction" => id}, frame, %{transactions: transactions} = state)
       when is_map_key(transactions, id) do
    headers = List.keydelete(frame.headers, "transaction", 0)
    {:noreply, update_in(state.transactions[id], &[%{frame | headers: headers} | &1])}
  end

  defp handle_frame(
         command,
         %{"transaction" => id},
         _frame,
         %{transactions: transactions} = state
       )
       when command in [:commit, :abort] and is_map_key(transactions, id) do
    {frames, state} = pop_in(state.transactions[id])
    if command == :commit, do: frames |> Enum.reverse() |> Enum.each(&publish(&1, state))
    {:noreply, state}
  end

  defp handle_frame(:send, %{"destination" => _} = headers, frame, state)
       when not is_map_key(headers, "transaction") do
    publish(frame, state)
    {:noreply, state}
  end

  defp handle_frame(command, headers, _frame, state) when command in [:ack, :nack] do
    message = headers["id"] || headers["message-id"]

    # As `message_id/2` made it.
    with [_all, id, number] <- Regex.run(~r/^T_(.*)@@session@@(\d+)$/s, message || ""),
         do: GenServer.cast(state.broker, {:settled, self(), id, String.to_integer(number)})

    {:noreply, state}
  end

  defp handle_frame(:disconnect, _headers, _frame, state), do: {:noreply, state}

  defp handle_frame(command, _headers, _frame, state) do
    send_data(format(state, :error, [{"message", "cannot #{command}"}]), state)
    {:stop, :normal, state}
  end

  defp publish(frame, state) do
    destination = Frame.header(frame, "destination")
    own = ["destination", "receipt", "content-length"]
    headers = Enum.reject(frame.headers, fn {name, _value} -> name in own end)
    :ok = GenServer.call(state.broker, {:publish, destination, headers, frame.body})
  end

  defp receipt(nil, state), do: {:noreply, state}

  defp receipt({"receipt", id}, state),
    do: send_data(format(state, :receipt, [{"receipt-id", id}]), state)

  defp negotiate(accepted),
    do: Enum.find(["1.2", "1.1"], "1.0", &(&1 in String.split(accepted, ",", trim: true)))

  defp message(state, id, destination, headers, body, number) do
    message_id = message_id(id, number)

    own = [
      {"subscription", id},
      {"destination", destination},
      {"message-id", message_id},
      {"ack", message_id}
    ]

    format(state, :message, own ++ headers, body)
  end

  defp message_id(id, number), do: "T_#{id}@@session@@#{number}"

  defp format(state, command, headers, body \\ ""),
    do: Frame.format(%Frame{command: command, headers: headers, body: body}, state.version)

  defp now, do: System.monotonic_time(:millisecond)

  defp send_data(data, state) do
    case :gen_tcp.send(state.socket, data) do
      :ok -> {:noreply, state}
      {:error, _reason} -> {:stop, :normal, state}
    end
  end

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
