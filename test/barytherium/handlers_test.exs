defmodule Barytherium.HandlersTest do
  # Several processes that handle the messages of one connection.
  use Barytherium.ClientCase, async: true

  alias Barytherium.Consumer

  # Waits until the test says what to return.
  defmodule Waiting do
    use Barytherium.Consumer, subscribe: "/queue/a", backoff: {10, 10}

    @impl true
    def init(test) do
      send(test, {:init, self()})
      {:ok, test}
    end

    @impl true
    def handle_connected(_info, test) do
      send(test, {:connected, self()})
      {:ok, test}
    end

    @impl true
    def handle_message(%{body: body}, test) do
      send(test, {:handling, body, self()})

      receive do
        {:return, result} -> {result, test}
        :raise -> raise "oh no"
      end
    end
  end

  defmodule Batches do
    use Barytherium.Consumer, subscribe: "/queue/a"

    @impl true
    def handle_batch(frames, test) do
      send(test, {:batch, self(), Enum.map(frames, & &1.body)})
      receive do: (:go -> {:ack, test})
    end
  end

  setup do
    Process.flag(:trap_exit, true)
    :ok
  end

  defp handling(body) do
    assert_receive {:handling, ^body, worker}
    worker
  end

  defp acknowledged(peer) do
    {%{"id" => "a-" <> body}, ""} = expect(peer, :ack)
    body
  end

  test "each message goes to one that is free" do
    {consumer, peer, id, _listener} = start_consumer(Waiting, handlers: 2)
    assert_receive {:init, one}
    assert_receive {:init, two}
    for worker <- [one, two], do: assert_receive({:connected, ^worker})

    for body <- ["1", "2", "3", "4"], do: message(peer, id, body)
    slow = handling("1")
    quick = handling("2")
    assert Enum.sort([slow, quick]) == Enum.sort([one, two])

    for body <- ["2", "3", "4"] do
      send(quick, {:return, :ack})
      assert acknowledged(peer) == body
      if body != "4", do: assert(handling("#{String.to_integer(body) + 1}") == quick)
    end

    send(slow, {:return, :ack})
    assert acknowledged(peer) == "1"
    stop_consumer(consumer, peer)
  end

  test "a batch is shared" do
    {consumer, peer, id, _listener} = start_consumer(Batches, handlers: 3)
    frame = &"MESSAGE\nsubscription:#{id}\nmessage-id:#{&1}\nack:a-#{&1}\n\n#{&1}\0"
    Peer.send(peer, for(n <- 1..6, do: frame.(n)))

    for bodies <- [["1", "2"], ["3", "4"], ["5", "6"]] do
      assert_receive {:batch, worker, ^bodies}
      send(worker, :go)
      assert for(_body <- bodies, do: acknowledged(peer)) == bodies
    end

    stop_consumer(consumer, peer)
  end

  test "what has arrived is handled by all of them when the consumer stops" do
    {consumer, peer, id, _listener} = start_consumer(Waiting, handlers: 2)
    for body <- ["1", "2", "3"], do: message(peer, id, body)
    [client] = Consumer.clients(consumer)
    eventually(fn -> Client.stats(client).frames == 5 end)
    workers = for body <- ["1", "2"], do: handling(body)
    stopping = Task.async(fn -> Supervisor.stop(consumer, :shutdown) end)
    eventually(fn -> Client.status(client).state == :closing end)
    [one, two] = workers
    send(one, {:return, :ack})
    assert acknowledged(peer) == "1"
    assert handling("3") == one
    for worker <- workers, do: send(worker, {:return, :ack})
    assert Enum.sort([acknowledged(peer), acknowledged(peer)]) == ["2", "3"]
    disconnect(peer)
    Task.await(stopping)
    refute Process.alive?(two)
  end

  test "a callback that never returns is killed at the end of the time" do
    {consumer, peer, id, _listener} = start_consumer(Waiting, handlers: 2, shutdown: 500)
    message(peer, id, "1")
    worker = handling("1")
    stop_consumer(consumer, peer)
    refute Process.alive?(worker)
  end

  defmodule Linked do
    use Barytherium.Consumer, subscribe: "/queue/a"

    defmodule Buffer do
      use GenServer
      def start_link(test), do: GenServer.start_link(__MODULE__, test)

      @impl true
      def init(test) do
        Process.flag(:trap_exit, true)
        {:ok, test}
      end

      @impl true
      def terminate(_reason, test), do: send(test, :buffer_flushed)
    end

    @impl true
    def init(test) do
      {:ok, _buffer} = Buffer.start_link(test)
      # However it got there.
      Process.flag(:trap_exit, true)
      {:ok, test}
    end

    @impl true
    def handle_message(_frame, test) do
      send(test, {:handling, self()})
      Process.sleep(:infinity)
    end
  end

  for handlers <- [1, 2] do
    test "what is linked to one that is killed can trap that (#{handlers} handlers)" do
      {consumer, peer, id, _listener} =
        start_consumer(Linked, handlers: unquote(handlers), shutdown: 300)

      message(peer, id, "1")
      assert_receive {:handling, worker}
      stop_consumer(consumer, peer)
      refute Process.alive?(worker)
      assert_receive :buffer_flushed
    end
  end

  test "one that crashes ends the connection, and all are started again" do
    {_consumer, peer, id, listener} = start_consumer(Waiting, handlers: 2, on_exception: :restart)
    for _n <- 1..2, do: assert_receive({:init, _worker})
    for body <- ["1", "2"], do: message(peer, id, body)
    [one, two] = for body <- ["1", "2"], do: handling(body)
    send(one, :raise)
    accept_connected(listener)
    for _n <- 1..2, do: assert_receive({:init, _worker})
    for worker <- [one, two], do: refute(Process.alive?(worker))
  end

  test "after as many messages that raise as the broker sends ahead the connection ends" do
    opts = [handlers: 2, subscribe: {"/queue/a", prefetch: 4}]
    {_consumer, peer, id, listener} = start_consumer(Waiting, opts)

    for body <- ["1", "2", "3", "4"] do
      message(peer, id, body)
      send(handling(body), :raise)
    end

    accept_connected(listener)
  end

  test "a consumer that stops before it is connected lets nobody wait" do
    {listener, url} = broker()
    {:ok, consumer} = Waiting.start_link(url: url, init_arg: self(), handlers: 2)
    [client] = Consumer.clients(consumer)
    {_peer, _connect} = accept(listener)
    opts = [wait: true, timeout: 60_000]
    publishing = Task.async(fn -> Client.publish(client, "/queue/b", "x", opts) end)
    eventually(fn -> map_size(elem(:sys.get_state(client), 1).waiting) == 1 end)
    Supervisor.stop(consumer, :shutdown)
    assert {:error, %{reason: :disconnected}} = Task.await(publishing)
  end

  test "a mistake in init/1 is an error of start_link" do
    defmodule Stopping do
      use Barytherium.Consumer, subscribe: "/queue/a", url: "stomp://localhost"

      @impl true
      def init(_arg), do: {:stop, :no}

      @impl true
      def handle_message(_frame, state), do: {:ack, state}
    end

    assert {:error, {:shutdown, {:failed_to_start_child, 1, :no}}} =
             Stopping.start_link(handlers: 2)
  end

  test "an acknowledgement never covers what another one has not handled" do
    assert_raise ArgumentError, ~r/option :handlers: with ack: :client/, fn ->
      Waiting.start_link(url: "stomp://localhost", handlers: 2, subscribe: {"/q", ack: :client})
    end

    # In 1.0 acknowledgements are cumulative, so all messages go to the same one.
    {consumer, peer, id, _listener} = start_consumer(Waiting, [handlers: 2], [])
    for body <- ["1", "2"], do: message(peer, id, body)
    worker = handling("1")
    refute_receive {:handling, "2", _worker}, 50
    send(worker, {:return, :ack})
    expect(peer, :ack)
    assert handling("2") == worker
    send(worker, {:return, :ack})
    expect(peer, :ack)
    stop_consumer(consumer, peer)
  end

  test "while none is free nothing more is read than the limit" do
    {consumer, peer, id, _listener} = start_consumer(Waiting, handlers: 2, high_water_mark: 4)
    [client] = Consumer.clients(consumer)

    # Each comes in a list of its own, until no more is read.
    sent =
      Enum.find(1..100, fn n ->
        message(peer, id, "#{n}")
        eventually(fn -> paused?(client) or Client.stats(client).frames == n + 2 end)
        paused?(client)
      end)

    assert sent in 4..20
    for n <- 1..sent, do: send(handling("#{n}"), {:return, :ack})
    for _n <- 1..sent, do: acknowledged(peer)
    stop_consumer(consumer, peer)
  end

  defp paused?(client), do: Client.stats(client).pauses > 0
end
