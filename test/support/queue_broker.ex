defmodule Barytherium.QueueBroker do
  @moduledoc """
  A scripted broker with queues: receipts, acknowledgements, redelivery, and faults on demand. It notes what a
  client must not do: frames after DISCONNECT, and acknowledgements of messages that its connection does not
  have, or that were not handled. A subscription with the header `exclusive` has its destination for itself as long
  as its connection exists.
  """
  use GenServer

  alias Barytherium.Frame

  # Messages that a subscription may have without acknowledging them.
  @prefetch 100

  @doc "Options: `:handled?`, a function of a body that is true if the message was handled."
  def start_link(opts), do: GenServer.start_link(__MODULE__, opts)

  def port(broker), do: GenServer.call(broker, :port)

  @doc "`%{violations: list, queued: count, connections: count}`."
  def info(broker), do: GenServer.call(broker, :info, :infinity)

  @doc "Does something to a random connection: `:cut`, `:silence`, `:error`, `:odd_receipts`."
  def fault(broker, kind), do: GenServer.call(broker, {:fault, kind}, :infinity)

  @impl true
  def init(opts) do
    mode = [:binary, active: false, ip: {127, 0, 0, 1}, reuseaddr: true, backlog: 1_024]
    {:ok, listener} = :gen_tcp.listen(0, mode)
    broker = self()
    spawn_link(fn -> accept(listener, broker) end)
    {:ok, port} = :inet.port(listener)

    {:ok,
     %{
       port: port,
       handled?: opts[:handled?] || fn _body -> true end,
       # `{body, redelivered}` by destination, and connections by their processes.
       queues: %{},
       connections: %{},
       next: 1,
       # The connection that has a destination for itself.
       owners: %{},
       violations: []
     }}
  end

  defp accept(listener, broker) do
    {:ok, socket} = :gen_tcp.accept(listener)
    pid = spawn(fn -> receive do: (:go -> connection(socket, broker, Frame.parse_state())) end)
    :ok = :gen_tcp.controlling_process(socket, pid)
    :ok = GenServer.call(broker, {:connected, pid}, :infinity)
    :inet.setopts(socket, active: :once)
    send(pid, :go)
    accept(listener, broker)
  end

  # The process of a connection: bytes to frames, and back.
  defp connection(socket, broker, state) do
    receive do
      {:tcp, ^socket, data} ->
        {:ok, frames, state} = Frame.parse_all(data, state)
        :ok = GenServer.call(broker, {:frames, self(), frames}, :infinity)
        :inet.setopts(socket, active: :once)
        connection(socket, broker, state)

      {:send, data} ->
        :gen_tcp.send(socket, data)
        connection(socket, broker, state)

      :silence ->
        receive do: (:cut -> :gen_tcp.close(socket))

      :cut ->
        :gen_tcp.close(socket)

      {:tcp_closed, ^socket} ->
        :ok

      {:tcp_error, ^socket, _reason} ->
        :ok
    end
  end

  @impl true
  def handle_call(:port, _from, state), do: {:reply, state.port, state}

  def handle_call(:info, _from, state) do
    queued =
      for {_destination, queue} <- state.queues, reduce: 0, do: (sum -> sum + length(queue))

    info = %{
      violations: state.violations,
      queued: queued,
      connections: map_size(state.connections)
    }

    unacked = for {_pid, %{unacked: unacked}} <- state.connections, do: length(unacked)
    {:reply, Map.put(info, :unacked, Enum.sum(unacked)), state}
  end

  def handle_call({:connected, pid}, _from, state) do
    Process.monitor(pid)
    connection = %{subscriptions: %{}, unacked: [], transactions: %{}, over: false, odd: false}
    {:reply, :ok, put_in(state.connections[pid], connection)}
  end

  def handle_call({:frames, pid, frames}, _from, state),
    do: {:reply, :ok, Enum.reduce(frames, state, &frame(&1, pid, &2))}

  def handle_call({:fault, _kind}, _from, %{connections: none} = state) when none == %{},
    do: {:reply, :none, state}

  def handle_call({:fault, kind}, _from, state) do
    {pid, _connection} = Enum.random(state.connections)

    state =
      case kind do
        :error ->
          out(pid, :error, [{"message", "chaos"}])
          state

        :odd_receipts ->
          out(pid, :receipt, [{"receipt-id", "unknown"}])
          put_in(state.connections[pid].odd, true)

        other ->
          send(pid, other)
          # A silent connection ends some time.
          if other == :silence, do: Process.send_after(pid, :cut, 2_000)
          state
      end

    {:reply, kind, state}
  end

  @impl true
  def handle_info({:DOWN, _monitor, :process, pid, _reason}, state) do
    {%{unacked: unacked}, connections} = Map.pop!(state.connections, pid)
    state = %{state | connections: connections}

    inherited =
      for {destination, ^pid} <- state.owners, do: {destination, heir(destination, state)}

    state = requeue(unacked, %{state | owners: Map.merge(state.owners, Map.new(inherited))})
    {:noreply, Enum.reduce(inherited, state, &dispatch(elem(&1, 0), &2))}
  end

  # To others, the oldest first.
  defp requeue(unacked, state) do
    state =
      Enum.reduce(unacked, state, fn {_id, destination, body, _subscription}, state ->
        update_in(state.queues[destination], &[{body, true} | &1 || []])
      end)

    unacked |> Enum.map(&elem(&1, 1)) |> Enum.uniq() |> Enum.reduce(state, &dispatch/2)
  end

  defp frame(%Frame{command: command, headers: headers, body: body}, pid, state) do
    headers = Frame.headers_to_map(headers)
    connection = state.connections[pid]

    state =
      if connection.over,
        do: violation({:after_disconnect, command}, state),
        else: frame(command, headers, body, pid, state)

    receipt(headers["receipt"], pid, state)
    state
  end

  defp frame(:connect, headers, _body, pid, state) do
    heart_beat = headers["heart-beat"] || "0,0"
    version = headers["accept-version"] |> String.split(",") |> Enum.max()
    out(pid, :connected, [{"version", version}, {"heart-beat", heart_beat}])
    state
  end

  defp frame(:send, %{"transaction" => id} = headers, body, pid, state) do
    add = &[{:send, headers["destination"], body} | &1 || []]
    update_in(state.connections[pid].transactions[id], add)
  end

  defp frame(:send, %{"destination" => destination}, body, _pid, state),
    do: dispatch(destination, enqueue(destination, body, state))

  defp frame(:subscribe, %{"id" => id, "destination" => destination} = headers, _body, pid, state) do
    subscription = %{destination: destination, ack: headers["ack"]}
    state = put_in(state.connections[pid].subscriptions[id], subscription)

    if headers["exclusive"],
      do: dispatch(destination, update_in(state.owners[destination], &(&1 || pid))),
      else: dispatch(destination, state)
  end

  defp frame(:unsubscribe, %{"id" => id}, _body, pid, state) do
    case pop_in(state.connections[pid].subscriptions[id]) do
      {nil, state} ->
        violation({:unsubscribe, id}, state)

      {_subscription, state} ->
        {given_back, kept} = Enum.split_with(state.connections[pid].unacked, &(elem(&1, 3) == id))
        requeue(given_back, put_in(state.connections[pid].unacked, kept))
    end
  end

  defp frame(command, headers, _body, pid, state) when command in [:ack, :nack] do
    %{unacked: unacked, subscriptions: subscriptions} = state.connections[pid]
    # As the versions before 1.2 name a message.
    id = headers["id"] || headers["message-id"]

    with {_id, _destination, _body, subscription} <- List.keyfind(unacked, id, 0),
         %{^subscription => %{ack: "client"}} <- subscriptions do
      # The newest is the first. With `client` the older ones are covered too.
      unacked
      |> Enum.filter(&(elem(&1, 3) == subscription))
      |> Enum.drop_while(&(elem(&1, 0) != id))
      |> Enum.reduce(state, &settle(command, elem(&1, 0), pid, &2))
    else
      _one -> settle(command, id, pid, state)
    end
  end

  defp frame(:begin, %{"transaction" => id}, _body, pid, state),
    do: put_in(state.connections[pid].transactions[id], [])

  defp frame(command, %{"transaction" => id}, _body, pid, state)
       when command in [:commit, :abort] do
    {actions, state} = pop_in(state.connections[pid].transactions[id])

    cond do
      actions == nil -> violation({command, id}, state)
      command == :abort -> state
      true -> Enum.reduce(Enum.reverse(actions), state, &commit/2)
    end
  end

  defp frame(:disconnect, _headers, _body, pid, state),
    do: put_in(state.connections[pid].over, true)

  defp frame(_other, _headers, _body, _pid, state), do: state

  defp settle(command, id, pid, state) do
    case List.keytake(state.connections[pid].unacked, id, 0) do
      {{^id, destination, body, _subscription}, unacked} ->
        state = put_in(state.connections[pid].unacked, unacked)
        state = if command == :ack, do: check_handled(body, state), else: state

        state =
          if command == :nack,
            do: update_in(state.queues[destination], &[{body, true} | &1 || []]),
            else: state

        dispatch(destination, state)

      nil ->
        violation({command, id}, state)
    end
  end

  defp commit({:send, destination, body}, state),
    do: dispatch(destination, enqueue(destination, body, state))

  defp check_handled(body, state),
    do: if(state.handled?.(body), do: state, else: violation({:acked_unhandled, body}, state))

  defp violation(what, state), do: %{state | violations: [what | state.violations]}

  defp enqueue(destination, body, state),
    do: update_in(state.queues[destination], &((&1 || []) ++ [{body, false}]))

  # Gives what waits to the subscriptions that have the least.
  defp dispatch(destination, state) do
    with [{body, again} | rest] <- state.queues[destination] || [],
         [_ | _] = free <- free(destination, state) do
      {_count, pid, id, ack} = Enum.min(free)
      tag = "#{state.next}"

      headers = [
        {"subscription", id},
        {"message-id", tag},
        {"destination", destination},
        {"ack", tag}
      ]

      out(pid, :message, headers ++ if(again, do: [{"redelivered", "true"}], else: []), body)
      state = %{put_in(state.queues[destination], rest) | next: state.next + 1}

      state =
        if ack == "auto",
          do: state,
          else: update_in(state.connections[pid].unacked, &[{tag, destination, body, id} | &1])

      dispatch(destination, state)
    else
      _nothing_or_nobody -> state
    end
  end

  # Another connection that is subscribed, or nil.
  defp heir(destination, state) do
    subscribed? = fn {_id, subscription} -> subscription.destination == destination end

    subscribed =
      for {pid, one} <- state.connections, Enum.any?(one.subscriptions, subscribed?), do: pid

    List.first(subscribed)
  end

  defp free(destination, state) do
    for {pid, %{over: false} = connection} <- state.connections,
        Map.get(state.owners, destination, pid) == pid,
        {id, %{destination: ^destination, ack: ack}} <- connection.subscriptions,
        count = Enum.count(connection.unacked, &(elem(&1, 3) == id)),
        count < @prefetch,
        do: {count, pid, id, ack}
  end

  defp receipt(nil, _pid, _state), do: :ok

  defp receipt(id, pid, state) do
    out(pid, :receipt, [{"receipt-id", id}])
    # Twice.
    if state.connections[pid].odd, do: out(pid, :receipt, [{"receipt-id", id}])
  end

  defp out(pid, command, headers, body \\ "") do
    frame = %Frame{command: command, headers: headers, body: body}
    send(pid, {:send, Frame.format(frame, "1.2")})
  end
end
