defmodule Barytherium.BrokerScript do
  @moduledoc """
  Random scripts for a broker: connections that subscribe, send, acknowledge, refuse, use transactions and end.
  `random/2` makes one up, with what each connection should get by `Barytherium.TestBroker.Session`. `play/2` plays it on
  any broker, and returns what each connection got.

  A step names a message by its position in its subscription, because its id is another one each time, and because the order
  is the same only there: what comes first of a receipt and a message, or of messages of two subscriptions, brokers leave
  open.
  """

  alias Barytherium.Frame
  alias Barytherium.TestBroker.{Queues, Session}

  # How long a broker may take for what a step causes, how long it is watched for frames that should not come, and how
  # long it gets for an end.
  @patience_ms 5_000
  @afterwards_ms 200
  @ending_ms 50

  @destinations ["/queue/a", "/queue/b", "/topic/c"]

  @type step ::
          {:connect, pos_integer()}
          | {:cut, pos_integer()}
          | {Frame.frame_command(), pos_integer(),
             position :: nil | {binary(), non_neg_integer()}, Frame.frame_headers(),
             body :: binary()}

  @doc "Makes up a script of `count` steps. Returns `{steps, trace}`; each step has the number of frames after it."
  def random(like, count) do
    # ActiveMQ keeps persistent messages and others apart, so that their order is open if a queue has both.
    persistent = Enum.random([[], [{"persistent", "true"}]])
    state = %{session: Session.new(like), got: %{}, steps: [], next: 1, persistent: persistent}
    state = Enum.reduce(1..count, state, fn _number, state -> run(choose(state), state) end)
    # What is left, when everybody has gone.
    state =
      for({id, _} <- state.session.connections, do: {:cut, id}) |> Enum.reduce(state, &run/2)

    left =
      for destination <- ["/queue/a", "/queue/b", dead_letters(like)] do
        {:subscribe, state.next, nil, [{"id", destination}, {"destination", destination}], ""}
      end

    state = Enum.reduce([{:connect, state.next} | left], state, &run/2)
    {Enum.reverse(state.steps), trace(state.got)}
  end

  # ActiveMQ has one for all scripts.
  defp dead_letters(:activemq), do: "/queue/ActiveMQ.DLQ"
  defp dead_letters(_like), do: "/queue/DLQ"

  # One step, as the session sees it.
  defp run(step, state) do
    {actions, _published, _acked, session} = step |> act(state) |> Session.take()

    got =
      for {id, {:frame, command, headers, body}} <- actions, reduce: state.got do
        got ->
          frame = %Frame{command: command, headers: headers, body: body}
          Map.update(got, id, [frame], &(&1 ++ [frame]))
      end

    counts = for {id, frames} <- got, into: %{}, do: {id, length(frames)}

    %{
      state
      | session: session,
        got: got,
        steps: [{step, counts} | state.steps],
        next: state.next + 1
    }
  end

  defp act({:connect, id}, state), do: Session.connected(state.session, id, "1.2")
  defp act({:cut, id}, state), do: Session.closed(state.session, id)

  defp act({command, id, position, headers, body}, state) do
    headers = headers(position, headers, state.got[id])
    Session.handle(state.session, id, %Frame{command: command, headers: headers, body: body})
  end

  defp headers(nil, headers, _got), do: headers

  defp headers({subscription, at}, headers, got) do
    message = got |> messages(subscription) |> Enum.at(at)
    [{"id", Frame.header(message, "ack")} | headers]
  end

  defp messages(got, subscription),
    do: Enum.filter(got, &(Frame.header(&1, "subscription") == subscription))

  defp choose(%{session: session} = state) do
    live = Map.keys(session.connections)

    if length(live) < 2,
      do: {:connect, state.next},
      else: live |> Enum.random() |> choices(state, length(live)) |> Enum.random()
  end

  # Each as often as it is likely.
  defp choices(id, %{session: session} = state, live) do
    subscriptions = for {{^id, name}, _options} <- session.queues.subscriptions, do: name
    transactions = Map.keys(session.connections[id].transactions)
    receipt = {"receipt", "#{state.next}"}

    [
      if(live < 3, do: [{:connect, state.next}]),
      if(live > 2, do: [{:cut, id}, {:disconnect, id, nil, [receipt], ""}]),
      if(length(subscriptions) < 2, do: subscribe(id, receipt, state)),
      for(
        name <- subscriptions,
        transactions == [],
        do: {:unsubscribe, id, nil, [{"id", name}, receipt], ""}
      ),
      for(_ <- 1..5, do: send_step(id, [receipt], state)),
      settle(id, transactions, receipt, state),
      transaction(id, transactions, receipt, state)
    ]
    |> Enum.reject(&is_nil/1)
    |> List.flatten()
  end

  # When a connection ends that is subscribed to a queue twice, ActiveMQ gives one subscription what the other had.
  defp subscribe(id, {"receipt", number} = receipt, %{session: session}) do
    taken =
      for {{^id, _name}, %{destination: destination}} <- session.queues.subscriptions,
          do: destination

    ack = Enum.random(["auto", "client", "client-individual"])
    limit = "#{Enum.random([2, 3, 100])}"
    prefetch = [{"prefetch-count", limit}, {"activemq.prefetchSize", limit}]

    for destination <- @destinations, session.like == :rabbitmq or destination not in taken do
      own = [{"id", "s#{number}"}, {"destination", destination}, {"ack", ack}, receipt]
      {:subscribe, id, nil, own ++ prefetch, ""}
    end
  end

  defp send_step(id, headers, state) do
    destination = {"destination", Enum.random(@destinations)}
    {:send, id, nil, [destination | headers] ++ state.persistent, "#{state.next}"}
  end

  # While acknowledgements wait for a COMMIT there are no others, because they could be for the same messages.
  defp settle(_id, [_ | _], _receipt, _state), do: []

  defp settle(id, [], receipt, state) do
    acks = open(id, state, ["client", "client-individual"])

    # RabbitMQ gives back what a cumulative NACK covers subscription by subscription, in an order of its own.
    nacks =
      if state.session.like == :rabbitmq, do: open(id, state, ["client-individual"]), else: acks

    for {command, positions} <- [ack: acks, ack: acks, nack: nacks],
        position <- positions,
        do: {command, id, position, [receipt], ""}
  end

  defp transaction(id, [], receipt, state),
    do: {:begin, id, nil, [{"transaction", "t#{state.next}"}, receipt], ""}

  defp transaction(id, [name], receipt, %{session: session} = state) do
    transaction = [{"transaction", name}, receipt]

    pending =
      for frame <- session.connections[id].transactions[name], do: Frame.header(frame, "id")

    free = fn position ->
      headers(position, [], state.got[id])
      |> hd()
      |> elem(1)
      |> Kernel.in(pending)
      |> Kernel.not()
    end

    # ActiveMQ makes room already before the COMMIT.
    acks =
      for position <- open(id, state, ["client-individual"]),
          session.like != :activemq,
          free.(position),
          do: {:ack, id, position, transaction, ""}

    ends = for command <- [:commit, :abort], do: {command, id, nil, transaction, ""}

    [send_step(id, transaction, state), send_step(id, transaction, state)] ++
      acks ++ ends
  end

  # The positions of the messages that this connection has to acknowledge.
  defp open(id, state, modes) do
    for %{number: number, ack: ack, subscription: {_id, name} = key} <-
          Queues.unacknowledged(state.session.queues, id),
        ack in modes and is_map_key(state.session.queues.subscriptions, key) do
      this? = &String.ends_with?(Frame.header(&1, "ack"), "@@#{number}")
      {name, state.got[id] |> messages(name) |> Enum.find_index(this?)}
    end
  end

  @doc "Plays the steps on the broker at `port`. Returns the trace."
  def play(steps, port) do
    state = %{port: port, name: "#{System.unique_integer([:positive])}", links: %{}}

    state =
      Enum.reduce(steps, state, fn {step, counts}, state ->
        step |> play_step(state) |> await(step, counts, now() + @patience_ms) |> await_end(step)
      end)

    state = afterwards(state)
    for {_id, link} <- state.links, do: :gen_tcp.close(link.socket)
    trace(Map.new(state.links, fn {id, link} -> {id, link.got} end))
  end

  defp play_step({:connect, id}, state) do
    options = [:binary, active: true, nodelay: true]
    {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, state.port, options)
    state = put_in(state.links[id], %{socket: socket, parse_state: Frame.parse_state(), got: []})
    login = [{"host", "/"}, {"login", "guest"}, {"passcode", "guest"}]
    headers = [{"accept-version", "1.2"}, {"heart-beat", "0,0"} | login]
    state |> write(id, :connect, headers, "") |> connected(id)
  end

  defp play_step({:cut, id}, state) do
    :gen_tcp.close(state.links[id].socket)
    state
  end

  defp play_step({command, id, position, headers, body}, state),
    do: write(state, id, command, headers(position, headers, state.links[id].got), body)

  defp connected(state, id) do
    case state.links[id].got do
      [] -> state |> pump(@patience_ms) |> connected(id)
      [%Frame{command: :connected}] -> put_in(state.links[id].got, [])
    end
  end

  # Queues of its own for each script.
  defp write(state, id, command, headers, body) do
    own = fn
      {"destination", "/queue/" <> name} = header when name in ["DLQ", "ActiveMQ.DLQ"] -> header
      {"destination", destination} -> {"destination", "#{destination}-#{state.name}"}
      header -> header
    end

    frame = %Frame{command: command, headers: Enum.map(headers, own), body: body}
    :ok = :gen_tcp.send(state.links[id].socket, Frame.format(frame, "1.2"))
    state
  end

  defp await(state, step, counts, deadline) do
    missing = for {id, count} <- counts, length(state.links[id].got) < count, do: id

    cond do
      missing == [] ->
        state

      now() > deadline ->
        raise "after #{inspect(step)} no more frames for #{inspect(missing)}, which have " <>
                inspect(
                  Map.take(trace(Map.new(state.links, fn {id, l} -> {id, l.got} end)), missing)
                )

      true ->
        state |> pump(100) |> await(step, counts, deadline)
    end
  end

  # A broker needs a moment to notice that a connection has ended. RabbitMQ sends the receipt before the subscription has.
  defp await_end(state, step) when elem(step, 0) in [:cut, :disconnect, :unsubscribe],
    do: pump(state, @ending_ms)

  defp await_end(state, _step), do: state

  defp afterwards(state) do
    later = pump(state, @afterwards_ms)
    if later == state, do: state, else: afterwards(later)
  end

  # What comes next, on whichever connection.
  defp pump(state, timeout) do
    receive do
      {:tcp, socket, data} ->
        {id, link} = Enum.find(state.links, fn {_id, link} -> link.socket == socket end)
        {:ok, frames, parse_state} = Frame.parse_all(data, link.parse_state)
        put_in(state.links[id], %{link | parse_state: parse_state, got: link.got ++ frames})

      {:tcp_closed, _socket} ->
        state
    after
      timeout -> state
    end
  end

  defp now, do: System.monotonic_time(:millisecond)

  # What can be compared: neither ids, nor the texts of errors, nor headers that only one broker has.
  defp trace(got) do
    traces =
      for {id, frames} <- got,
          frame <- frames,
          do: {{id, Frame.header(frame, "subscription")}, essence(frame)}

    traces
    |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))
    # RabbitMQ sends receipts when it is ready.
    |> Map.new(fn {{_id, subscription} = key, trace} ->
      {key, if(subscription, do: trace, else: Enum.sort(trace))}
    end)
  end

  defp essence(%Frame{command: :message} = frame) do
    name = frame |> Frame.header("destination") |> String.replace(~r/-\d+$/, "")
    redelivered = if Frame.header(frame, "redelivered") == "true", do: [:redelivered], else: []
    {name, frame.body, redelivered}
  end

  defp essence(frame), do: {frame.command, Frame.header(frame, "receipt-id")}
end
