defmodule Barytherium.TestBroker do
  @moduledoc """
  A STOMP broker on the loopback interface, for tests and experiments.

      broker = start_supervised!(Barytherium.TestBroker)
      url = "stomp://127.0.0.1:\#{Barytherium.TestBroker.port(broker)}"

  It speaks STOMP 1.0 to 1.2, with heart-beats, receipts and transactions, and accepts any login.

    * **Queues** keep what is sent to them. Subscriptions to the same queue compete: each message goes to the next one
      that has room (`prefetch-count` or `activemq.prefetchSize` in SUBSCRIBE; no limit without).
    * **Topics**, whose names begin with `/topic/`, give a copy to whoever is subscribed at that moment.
    * **What is not acknowledged** when its subscription or connection ends goes to others, with `redelivered: true`.
    * **A refused message** (NACK) goes to the queue `/queue/DLQ`.
    * **After an ERROR** the connection ends, as the specification demands.

  Brokers differ in the last three, and the client adapts itself. So a test can choose which one to imitate:

  | | `like: :rabbitmq` | `like: :activemq` |
  | --- | --- | --- |
  | UNSUBSCRIBE | what is not acknowledged stays until the connection ends | goes to others |
  | ACK with `ack: client` | covers all messages of the connection | those of the subscription |
  | NACK | the message is delivered again; with `requeue:false` it goes where the header `x-dead-letter-routing-key` of SUBSCRIBE says (with an empty `x-dead-letter-exchange`), or is dropped | goes to `/queue/ActiveMQ.DLQ` if it is persistent, and is dropped if not |
  | ERROR | the connection goes on | the same |
  | without a prefetch limit | none | 1,000 |

  The test suite plays random scripts on it and on these brokers, RabbitMQ 3.10 and ActiveMQ Classic 5.17, and each
  connection gets the same. Where they are known to differ:

    * it has no wildcards, exchanges, durable subscriptions, temporary queues, selectors, priorities and expiry;
    * texts of errors, and ids. Its message ids change with each delivery, ActiveMQ's do not;
    * RabbitMQ sends receipts when it is ready, and gives back what a cumulative NACK covers subscription by
      subscription;
    * in ActiveMQ an acknowledgement makes room for the next message before its transaction is committed. It keeps
      persistent messages of a queue and others apart. If a connection ends that is subscribed to a queue twice, one
      subscription gets what the other had.

  It can also play what was recorded from a real broker, see the option `:replay`:

      start_supervised!({Barytherium.TestBroker, replay: "feed.rec"})

  ## Assertions

  `assert_published/4` and `assert_acked/4` wait for something that clients have done, and return the frame:

      frame = Barytherium.TestBroker.assert_published(broker, "/queue/orders", "17")
      Barytherium.TestBroker.assert_acked(broker, "/queue/trains", &(&1.body =~ "2B45"))

  ## Faults

  See `fault/2`.
  """
  use GenServer, restart: :temporary

  alias Barytherium.{Frame, Recording}
  alias Barytherium.TestBroker.{Connection, Journal, Queues, Replay, Session}

  @type option ::
          {:port, :inet.port_number()}
          | {:like, :rabbitmq | :activemq}
          | {:rate, non_neg_integer()}
          | {:body, binary()}
          | {:heart_beat, {non_neg_integer(), non_neg_integer()}}
          | {:replay, Path.t()}
          | {:speed, number() | :infinity}
          | {:from, DateTime.t()}

  @type fault ::
          :close
          | {:close, pos_integer()}
          | :silence
          | {:delay, non_neg_integer()}
          | {:error, String.t()}
          | {:refuse, Frame.frame_command(), String.t()}

  @doc """
  Starts a broker.

    * `:port` - the port to listen on. `{:error, :eaddrinuse}` if it is taken. Default: 0, any free port; see
      `port/1`;
    * `:like` - the broker to imitate, see above. Default: none of them;
    * `:rate` - messages per second that the broker sends to each subscription by itself. They are in no queue, and
      need no acknowledgement. Default: 0, none;
    * `:body` - the body of these messages. Default: 256 bytes of text;
    * `:heart_beat` - the intervals in milliseconds at which the broker can send and wants to receive
      heart-beats. Default: `{1000, 1000}`;
    * `:replay` - a recording, see `mix barytherium.record`. Each subscription to a destination of the recording gets its
      messages, from the first one on. They are in no queue, and need no acknowledgement. The broker imitates the one
      that was recorded, unless `:like` is given. `{:error, {:replay, reason}}` if the file cannot be read, or is no
      recording;
    * `:speed` - how many times as fast the recording is played as it was recorded. Default: `:infinity`, as fast as the
      client takes it;
    * `:from` - a `DateTime`: leaves out what was recorded before.
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(opts \\ []) do
    opts =
      Keyword.validate!(opts, [:port, :like, :rate, :body, :heart_beat, :replay, :speed, :from])

    unless opts[:like] in [nil, :rabbitmq, :activemq],
      do: raise(ArgumentError, "like: is :rabbitmq or :activemq, not #{inspect(opts[:like])}")

    options = [:binary, active: false, ip: {127, 0, 0, 1}, reuseaddr: true, nodelay: true]

    # Opened here, so that a port that is in use does not end the caller, which is linked to the broker.
    with {:ok, opts} <- replay(opts[:replay], opts),
         {:ok, listener} <-
           :gen_tcp.listen(Keyword.get(opts, :port, 0), [backlog: 1024] ++ options),
         {:ok, broker} <- GenServer.start_link(__MODULE__, {listener, opts}) do
      :ok = :gen_tcp.controlling_process(listener, broker)
      {:ok, broker}
    end
  end

  defp replay(nil, opts), do: {:ok, opts}

  defp replay(path, opts) do
    case Recording.check(path) do
      :ok ->
        replay = %{path: path, speed: opts[:speed] || :infinity, from: opts[:from] || 0}
        opts = Keyword.put_new_lazy(opts, :like, fn -> Replay.like(path) end)
        {:ok, Keyword.put(opts, :replay, replay)}

      {:error, reason} ->
        {:error, {:replay, reason}}
    end
  end

  @doc "Returns the port that the broker listens on."
  @spec port(GenServer.server()) :: :inet.port_number()
  def port(broker), do: GenServer.call(broker, :port)

  @doc """
  Waits until a client is subscribed to `destination`, for at most `timeout` milliseconds. Then it exits, as
  `GenServer.call/3` does.
  """
  @spec await_subscription(GenServer.server(), String.t(), timeout()) :: :ok
  def await_subscription(broker, destination, timeout \\ 5_000) when is_binary(destination),
    do: GenServer.call(broker, {:await, {:subscribed, destination}}, timeout)

  @doc """
  Waits until messages were published to `destination`, and each of them is acknowledged or refused, for at most
  `timeout` milliseconds. Then it exits, as `GenServer.call/3` does: also if nobody got one, or only subscriptions with
  `ack: :auto`.
  """
  @spec await_acknowledgements(GenServer.server(), String.t(), timeout()) :: :ok
  def await_acknowledgements(broker, destination, timeout \\ 5_000) when is_binary(destination),
    do: GenServer.call(broker, {:await, {:settled, destination}}, timeout)

  @doc "Publishes `body` to `destination`."
  @spec publish(GenServer.server(), binary(), binary(), Frame.frame_headers()) :: :ok
  def publish(broker, destination, body, headers \\ [])
      when is_binary(destination) and is_binary(body) and is_list(headers),
      do: GenServer.call(broker, {:publish, destination, headers, body})

  @doc """
  Waits until a client has sent a message to `destination`, and returns its SEND frame. In a transaction it counts from
  COMMIT on.

  `expected` is the body, or a function of the frame that returns whether it is the one. As with `assert_receive`, each
  message is found once: two assertions need two messages. The broker remembers the last 10,000.

  Raises `ExUnit.AssertionError` after `timeout` milliseconds, with the messages that there were instead.
  """
  @spec assert_published(
          GenServer.server(),
          binary(),
          binary() | (Frame.t() -> as_boolean(term())),
          timeout()
        ) :: Frame.t()
  def assert_published(broker, destination, expected, timeout \\ 1_000),
    do: assert_noted(broker, :published, destination, expected, timeout)

  @doc """
  Waits until a client has acknowledged a message from `destination`, and returns the MESSAGE frame, with its `destination`
  header and those that its publisher gave it. The rest is as with `assert_published/4`. For refused messages look into
  the queue for dead letters.
  """
  @spec assert_acked(
          GenServer.server(),
          binary(),
          binary() | (Frame.t() -> as_boolean(term())),
          timeout()
        ) :: Frame.t()
  def assert_acked(broker, destination, expected, timeout \\ 1_000),
    do: assert_noted(broker, :acked, destination, expected, timeout)

  @doc """
  Lets something go wrong.

    * `:close` - the connections are closed;
    * `{:close, n}` - each is closed when it has sent `n` more frames. Without a connection this is for the next one;
    * `:silence` - the connections stay open, and nothing is sent or answered any more, not even heart-beats. Without a
      connection this is for the next one;
    * `{:delay, ms}` - the connections send everything `ms` milliseconds later. Without a connection this is for the
      next one;
    * `{:error, message}` - each connection gets an ERROR with this `message` header;
    * `{:refuse, command, message}` - the next frame with this command, for example `:connect`, `:subscribe` or `:send`,
      is answered with such an ERROR and does nothing.
  """
  @spec fault(GenServer.server(), fault()) :: :ok
  def fault(broker, fault), do: GenServer.call(broker, {:fault, fault})

  # The function of the test runs here, so that the broker does not end if it raises.
  defp assert_noted(broker, kind, destination, expected, timeout)
       when is_binary(destination) and (is_binary(expected) or is_function(expected, 1)) do
    deadline = System.monotonic_time(:millisecond) + timeout
    search = %{broker: broker, kind: kind, destination: destination, deadline: deadline}

    with {:none, others} <- find(search, expected, []),
         do: failed(kind, destination, expected, timeout, others)
  end

  # `seen`: the entries that are not the one, the latest first.
  defp find(search, expected, seen) do
    wanted? = fn {_number, frame} = entry ->
      matches?(expected, frame) and take?(search, entry)
    end

    with [_ | _] = entries <- since(search, seen),
         nil <- Enum.find(entries, wanted?) do
      find(search, expected, Enum.reverse(entries, seen))
    else
      {_number, frame} -> frame
      [] -> {:none, for({_number, frame} <- Enum.reverse(seen), do: frame)}
    end
  end

  defp matches?(body, frame) when is_binary(body), do: frame.body == body
  defp matches?(function, frame), do: function.(frame)

  # Another process may have been faster.
  defp take?(search, {number, _frame}),
    do: GenServer.call(search.broker, {:take, search.kind, number})

  # The entries after those that were seen. Empty if there are none until the deadline.
  defp since(search, seen) do
    last = with [{number, _frame} | _] <- seen, do: number, else: ([] -> 0)
    condition = {:noted, search.kind, search.destination, last}
    left = max(search.deadline - System.monotonic_time(:millisecond), 0)

    with [] <- GenServer.call(search.broker, {:check, condition}),
         do: GenServer.call(search.broker, {:await, condition}, left)
  catch
    :exit, {:timeout, _call} -> []
  end

  # ExUnit is there in tests, but no application of ours.
  @spec failed(Journal.kind(), binary(), term(), timeout(), [Frame.t()]) :: no_return()
  defp failed(kind, destination, expected, timeout, others) do
    message =
      "within #{timeout} ms no message #{kind_text(kind)} #{destination} that is " <>
        "#{inspect(expected)}. There were: #{inspect(others, limit: 20, printable_limit: 1_000)}"

    raise apply(ExUnit.AssertionError, :exception, [[message: message]])
  end

  defp kind_text(:published), do: "was published to"
  defp kind_text(:acked), do: "was acknowledged from"

  @impl true
  def init({listener, opts}) do
    Process.flag(:trap_exit, true)
    broker = self()
    spawn_link(fn -> accept(listener, broker, opts) end)

    {:ok,
     %{
       listener: listener,
       session: Session.new(opts[:like], streams?(opts)),
       journal: %Journal{},
       # The processes of all connections, and the faults for the next one.
       connections: [],
       faults: [],
       # Whoever waits for a condition.
       waiting: []
     }}
  end

  defp streams?(opts), do: Keyword.get(opts, :rate, 0) > 0 or opts[:replay] != nil

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
        {:reply, nil, %{state | session: Session.connected(session, connection, version)}}

      {message, session} ->
        {:reply, message, %{state | session: session}}
    end
  end

  def handle_call({:publish, destination, headers, body}, _from, state) do
    session = Session.publish(state.session, destination, headers, body)
    {:reply, :ok, act(%{state | session: session})}
  end

  def handle_call({:await, condition}, from, state),
    do: {:noreply, answer(%{state | waiting: [{condition, from} | state.waiting]})}

  def handle_call({:check, condition}, _from, state),
    do: {:reply, reached(condition, state), state}

  def handle_call({:take, kind, number}, _from, state) do
    {taken?, journal} = Journal.take(state.journal, kind, number)
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

  def handle_call({:fault, fault}, _from, state) do
    fault = if fault == :close, do: {:close, 0}, else: fault
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

  def handle_info({:EXIT, _acceptor, reason}, state), do: {:stop, reason, state}

  @impl true
  # Without this the port could still be in use for a moment when the broker has ended.
  def terminate(_reason, state), do: :gen_tcp.close(state.listener)

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
      none when none in [nil, []] -> false
      value -> GenServer.reply(from, value) == :ok
    end
  end

  # What those who wait for the condition get, or nil or an empty list if it is not reached.
  defp reached({:subscribed, destination}, state),
    do: if(Queues.subscribed?(state.session.queues, destination), do: :ok)

  defp reached({:settled, destination}, state),
    do: if(Queues.settled?(state.session.queues, destination), do: :ok)

  defp reached({:noted, kind, destination, seen}, state),
    do: Journal.since(state.journal, kind, destination, seen)
end
