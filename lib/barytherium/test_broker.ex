defmodule Barytherium.TestBroker do
  @moduledoc """
  A small STOMP broker on the loopback interface, for tests and experiments.

      {:ok, broker} = Barytherium.TestBroker.start_link(rate: 1_000)
      port = Barytherium.TestBroker.port(broker)
      Barytherium.Network.start_link(self(), "127.0.0.1", port)

  It supports CONNECT and STOMP, SUBSCRIBE and UNSUBSCRIBE, SEND, transactions, receipts, DISCONNECT
  and heart-beats. It accepts any login.

  A message goes to the clients that are subscribed to its destination at that moment. The broker
  keeps no messages. It counts ACK and NACK, see `await_acknowledgements/3`, and does nothing else about them.
  """
  use GenServer, restart: :temporary

  alias Barytherium.Frame
  alias Barytherium.TestBroker.Client

  @type option ::
          {:port, :inet.port_number()}
          | {:rate, non_neg_integer()}
          | {:body, binary()}
          | {:heart_beat, {non_neg_integer(), non_neg_integer()}}

  @doc """
  Starts a broker.

    * `:port` - the port to listen on. `{:error, :eaddrinuse}` if it is taken. Default: 0, any free port; see
      `port/1`;
    * `:rate` - messages per second that the broker sends to each subscription by itself. Default: 0,
      none;
    * `:body` - the body of these messages. Default: 256 bytes of text;
    * `:heart_beat` - the intervals in milliseconds at which the broker can send and wants to receive
      heart-beats. Default: `{1000, 1000}`.
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(opts \\ []) do
    opts = Keyword.validate!(opts, [:port, :rate, :body, :heart_beat])
    options = [:binary, active: false, ip: {127, 0, 0, 1}, reuseaddr: true, nodelay: true]

    # Opened here, so that a port that is in use does not end the caller, which is linked to the broker.
    with {:ok, listener} <-
           :gen_tcp.listen(Keyword.get(opts, :port, 0), [backlog: 1024] ++ options),
         {:ok, broker} <- GenServer.start_link(__MODULE__, {listener, opts}) do
      :ok = :gen_tcp.controlling_process(listener, broker)
      {:ok, broker}
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
  Waits until messages were published to `destination`, and each of them is acknowledged or refused by whoever got it,
  for at most `timeout` milliseconds. Then it exits, as `GenServer.call/3` does: also if nobody got one, or only
  subscriptions with `ack: :auto`, or if a connection ended before it had acknowledged.
  """
  @spec await_acknowledgements(GenServer.server(), String.t(), timeout()) :: :ok
  def await_acknowledgements(broker, destination, timeout \\ 5_000) when is_binary(destination),
    do: GenServer.call(broker, {:await, {:acknowledged, destination}}, timeout)

  @doc "Sends `body` to the subscribers of `destination`."
  @spec publish(GenServer.server(), binary(), binary(), Frame.frame_headers()) :: :ok
  def publish(broker, destination, body, headers \\ [])
      when is_binary(destination) and is_binary(body) and is_list(headers),
      do: GenServer.call(broker, {:publish, destination, headers, body})

  @impl true
  def init({listener, opts}) do
    Process.flag(:trap_exit, true)
    broker = self()
    spawn_link(fn -> accept(listener, broker, opts) end)

    {:ok,
     %{
       listener: listener,
       subscriptions: [],
       # Whoever waits, and for what.
       waiting: [],
       # How many messages there were.
       published: 0,
       # The destination of each message that is to be acknowledged, and how many of each there are.
       unacknowledged: %{},
       open: %{}
     }}
  end

  defp accept(listener, broker, opts) do
    with {:ok, socket} <- :gen_tcp.accept(listener) do
      {:ok, client} = Client.start(broker, socket, opts)
      :ok = :gen_tcp.controlling_process(socket, client)
      Client.begin(client)
      accept(listener, broker, opts)
    end
  end

  @impl true
  def handle_call(:port, _from, state) do
    {:ok, port} = :inet.port(state.listener)
    {:reply, port, state}
  end

  def handle_call({:subscribe, destination, id, ack}, {client, _tag}, state) do
    Process.monitor(client)
    subscription = %{destination: destination, client: client, id: id, ack: ack}
    {:reply, :ok, answer(%{state | subscriptions: [subscription | state.subscriptions]})}
  end

  def handle_call({:await, condition}, from, state),
    do: {:noreply, answer(%{state | waiting: [{condition, from} | state.waiting]})}

  def handle_call({:unsubscribe, id}, {client, _tag}, state),
    do: {:reply, :ok, reject(state, &(&1.client == client and &1.id == id))}

  def handle_call({:publish, destination, headers, body}, _from, %{published: number} = state) do
    subscriptions = for %{destination: ^destination} = one <- state.subscriptions, do: one

    for %{client: client, id: id} <- subscriptions,
        do: Client.deliver(client, id, destination, headers, body, number)

    open = for %{ack: ack} = one when ack != "auto" <- subscriptions, do: one
    {:reply, :ok, Enum.reduce(open, %{state | published: number + 1}, &opened(&1, number, &2))}
  end

  defp opened(%{client: client, id: id, ack: ack, destination: destination}, number, state) do
    unacknowledged = Map.put(state.unacknowledged, {client, id, number}, {destination, ack})
    open = Map.update(state.open, destination, 1, &(&1 + 1))
    %{state | unacknowledged: unacknowledged, open: open}
  end

  @impl true
  def handle_cast({:settled, client, id, number}, state) do
    settled =
      case state.unacknowledged[{client, id, number}] do
        nil -> []
        # An acknowledgement covers all before it.
        {_destination, "client"} -> through(client, id, number, state)
        _individual -> [{client, id, number}]
      end

    {:noreply, settled |> Enum.reduce(state, &settle/2) |> answer()}
  end

  defp through(client, id, number, state) do
    for {{^client, ^id, earlier} = key, _value} when earlier <= number <- state.unacknowledged,
        do: key
  end

  defp settle(key, state) do
    {{destination, _ack}, unacknowledged} = Map.pop!(state.unacknowledged, key)

    %{
      state
      | unacknowledged: unacknowledged,
        open: Map.update!(state.open, destination, &(&1 - 1))
    }
  end

  @impl true
  def handle_info({:DOWN, _monitor, :process, client, _reason}, state),
    do: {:noreply, reject(state, &(&1.client == client))}

  def handle_info({:EXIT, _acceptor, reason}, state), do: {:stop, reason, state}

  @impl true
  # Without this the port could still be in use for a moment when the broker has ended.
  def terminate(_reason, state), do: :gen_tcp.close(state.listener)

  defp reject(state, condition),
    do: answer(%{state | subscriptions: Enum.reject(state.subscriptions, condition)})

  # Tells those who wait for what is the case now.
  defp answer(state) do
    reached = fn {condition, _from} -> reached?(condition, state) end
    {ready, waiting} = Enum.split_with(state.waiting, reached)
    for {_condition, from} <- ready, do: GenServer.reply(from, :ok)
    %{state | waiting: waiting}
  end

  defp reached?({:subscribed, destination}, state),
    do: Enum.any?(state.subscriptions, &(&1.destination == destination))

  defp reached?({:acknowledged, destination}, state), do: state.open[destination] == 0
end
