defmodule Barytherium.TestBroker.Server do
  @moduledoc false
  # The process of a `Barytherium.TestBroker`: accepts connections, hands their frames to the session, and tells them what
  # to do.
  use GenServer

  alias Barytherium.TestBroker.{Connection, Journal, Queues, Session}

  # Milliseconds that connections have to notice the end of the broker. One whose client does not read is killed then.
  @grace 1_000

  @doc "Starts it with checked options."
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts) do
    options = [:binary, active: false, ip: {127, 0, 0, 1}, reuseaddr: true, nodelay: true]

    # Opened here, so that a port that is in use does not end the caller, which is linked to the broker.
    with {:ok, listener} <-
           :gen_tcp.listen(opts[:port] || 0, [backlog: 1024] ++ options),
         {:ok, broker} <- GenServer.start_link(__MODULE__, {listener, opts}) do
      :ok = :gen_tcp.controlling_process(listener, broker)
      {:ok, broker}
    end
  end

  @typedoc "What can be waited for: a subscription, acknowledgements, entries of the journal after a number."
  @type condition ::
          {:subscribed | :settled, destination :: binary()}
          | {:noted, {Journal.kind(), destination :: binary()}, non_neg_integer()}

  @doc "Waits for a condition, and exits like `GenServer.call/3`."
  @spec await(GenServer.server(), condition(), timeout()) :: :ok | [Journal.entry(), ...]
  def await(broker, condition, timeout) do
    with :not_yet <- GenServer.call(broker, {:check, condition}),
         do: GenServer.call(broker, {:await, condition, timeout}, timeout)
  end

  @impl true
  def init({listener, opts}) do
    Process.flag(:trap_exit, true)
    broker = self()
    spawn_link(fn -> accept(listener, broker, opts) end)

    {:ok,
     %{
       listener: listener,
       session: Session.new(opts[:like], streams?(opts)),
       journal: %{},
       # The processes of all connections, and the faults for the next one.
       connections: [],
       faults: [],
       # Whoever waits for a condition.
       waiting: []
     }}
  end

  defp streams?(opts), do: (opts[:rate] || 0) > 0 or opts[:replay] != nil

  defp accept(listener, broker, opts) do
    with {:ok, socket} <- :gen_tcp.accept(listener) do
      {:ok, connection} = Connection.start(broker, socket, opts)
      :ok = :gen_tcp.controlling_process(socket, connection)
      :ok = GenServer.call(broker, {:accepted, connection})
      Connection.begin(connection)
      accept(listener, broker, opts)
    end
  end

  @impl true
  def handle_call(:port, _from, state) do
    {:ok, port} = :inet.port(state.listener)
    {:reply, port, state}
  end

  def handle_call({:accepted, connection}, _from, state) do
    Process.monitor(connection)
    for fault <- Enum.reverse(state.faults), do: Connection.fault(connection, fault)
    {:reply, :ok, %{state | connections: [connection | state.connections], faults: []}}
  end

  def handle_call({:connect, version}, {connection, _tag}, state) do
    case Session.refusal(state.session, :connect) do
      {nil, session} ->
        {:reply, :ok, %{state | session: Session.connected(session, connection, version)}}

      {message, session} ->
        {:reply, {:error, message}, %{state | session: session}}
    end
  end

  def handle_call({:publish, destination, headers, body}, _from, state) do
    session = Session.publish(state.session, destination, headers, body)
    {:reply, :ok, act(%{state | session: session})}
  end

  def handle_call({:check, condition}, _from, state),
    do: {:reply, reached(condition, state) || :not_yet, state}

  def handle_call({:await, condition, timeout}, from, state) do
    if is_integer(timeout), do: Process.send_after(self(), {:give_up, from}, timeout)
    {:noreply, answer(%{state | waiting: [{condition, from} | state.waiting]})}
  end

  def handle_call({:take, key, number}, _from, state) do
    {taken?, journal} = Journal.take(state.journal, key, number)
    {:reply, taken?, %{state | journal: journal}}
  end

  def handle_call({:fault, {:refuse, command, message}}, _from, state) do
    refused = state.session.refused ++ [{command, message}]
    {:reply, :ok, put_in(state.session.refused, refused)}
  end

  def handle_call({:fault, {:error, message}}, _from, state) do
    error = &Session.error(&2, &1, message, nil)
    session = state.session.connections |> Map.keys() |> Enum.reduce(state.session, error)
    {:reply, :ok, act(%{state | session: session})}
  end

  # It may be about to write to a client that does not read.
  def handle_call({:fault, :close}, _from, state) do
    for connection <- state.connections, do: Process.exit(connection, :kill)
    {:reply, :ok, state}
  end

  def handle_call({:fault, fault}, _from, state) do
    for connection <- state.connections, do: Connection.fault(connection, fault)
    faults = if state.connections == [], do: [fault | state.faults], else: state.faults
    {:reply, :ok, %{state | faults: faults}}
  end

  @impl true
  def handle_cast({:frames, connection, frames}, state) do
    session = Enum.reduce(frames, state.session, &Session.handle(&2, connection, &1))
    {:noreply, act(%{state | session: session}, connection)}
  end

  @impl true
  def handle_info({:DOWN, _monitor, :process, connection, _reason}, state) do
    session = Session.closed(state.session, connection)
    connections = List.delete(state.connections, connection)
    {:noreply, act(%{state | session: session, connections: connections})}
  end

  # The caller has given up too.
  def handle_info({:give_up, from}, state),
    do: {:noreply, %{state | waiting: List.keydelete(state.waiting, from, 1)}}

  def handle_info({:EXIT, _acceptor, reason}, state), do: {:stop, reason, state}
  def handle_info(_stray, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, %{connections: connections, listener: listener}) do
    spawn(fn ->
      Process.sleep(@grace)
      for connection <- connections, do: Process.exit(connection, :kill)
    end)

    # Without this the port could still be in use for a moment when the broker has ended.
    :gen_tcp.close(listener)
  end

  # Tells the connections what to do, and those who wait what is the case now. `reader` may read on.
  defp act(state, reader \\ nil) do
    {actions, published, acked, session} = Session.take(state.session)
    actions = if reader, do: actions ++ [{reader, :more}], else: actions
    by_connection = Enum.group_by(actions, &elem(&1, 0), &elem(&1, 1))
    for {connection, actions} <- by_connection, do: Connection.act(connection, actions)
    journal = state.journal |> Journal.note(:published, published) |> Journal.note(:acked, acked)
    answer(%{state | session: session, journal: journal})
  end

  defp answer(state) do
    left =
      Enum.filter(state.waiting, fn {condition, from} -> not answered?(condition, from, state) end)

    %{state | waiting: left}
  end

  defp answered?(condition, from, state) do
    case reached(condition, state) do
      nil -> false
      value -> GenServer.reply(from, value) == :ok
    end
  end

  # What those who wait for the condition get, or nil if it is not reached.
  defp reached({:subscribed, destination}, state),
    do: if(Queues.subscribed?(state.session.queues, destination), do: :ok)

  defp reached({:settled, destination}, state),
    do: if(Queues.settled?(state.session.queues, destination), do: :ok)

  defp reached({:noted, key, seen}, state) do
    entries = Journal.since(state.journal, key, seen)
    if entries != [], do: entries
  end
end
