defmodule Barytherium.HealthTest do
  @moduledoc "Whether a feed is well: what has come, and what is wrong."
  use Barytherium.ClientCase, async: true

  import Barytherium.ReceiverCase, only: [eventually: 1]

  alias Barytherium.{Client, Consumer, Histogram, TestBroker}

  @moduletag capture_log: true

  setup do
    Process.flag(:trap_exit, true)
    :ok
  end

  # A client with a subscription to `/queue/a`: `{client, peer, id, listener}`.
  defp start(opts \\ []) do
    {listener, url} = broker()
    {:ok, client} = Client.start_link(url: url, listener: self(), backoff: {1, 10})
    peer = accept_connected(listener)
    {_subscription, %{"id" => id}} = subscribed(client, peer, [ack: :auto] ++ opts)
    {client, peer, id, listener}
  end

  # The clients end with their test.
  defp feed(client), do: client |> Client.feeds() |> hd()

  # Sends messages with these headers, and waits until they are here.
  defp feed(peer, id, headers) do
    for one <- headers, do: message(peer, id, "body", one)
    await(length(headers))
  end

  defp await(0), do: :ok

  defp await(count) do
    assert_receive {:barytherium, :messages, {frames, _subscription}}
    await(count - length(frames))
  end

  defp now, do: System.os_time(:millisecond)

  # Waits for the event that the listener gets.
  defp told do
    assert_receive {:barytherium, :client, {{:health, problems}, _client}}, 5_000
    problems
  end

  test "what has come is counted, without gaps where there is no sequence" do
    {client, peer, id, _listener} = start()

    assert feed(client) ==
             %{destination: "/queue/a", messages: 0, bytes: 0, idle: nil, lag: nil}
             |> Map.merge(%{gaps: 0, missing: 0, repeats: 0, to_start: nil, to_ack: nil})

    feed(peer, id, [[], [{"timestamp", "nonsense"}], []])
    assert %{messages: 3, bytes: 12, idle: idle, lag: nil, gaps: 0} = feed(client)
    assert idle in 0..5_000
  end

  test "the lag is that of a message not long ago" do
    {client, peer, id, _listener} = start()
    feed(peer, id, [[{"timestamp", now() - 60_000}]])
    assert %{lag: lag} = feed(client)
    assert lag in 60_000..70_000
    # Not every message is looked at, so it may be that of the one before.
    for _n <- 1..20, do: feed(peer, id, [[{"timestamp", now() + 60_000}]])
    assert %{lag: lag} = feed(client)
    assert lag in -60_000..-50_000

    # In seconds. While it is large each is looked at.
    feed(peer, id, [[{"timestamp", div(now(), 1_000) - 60}], [{"timestamp", 0}]])
    for _n <- 1..16, do: feed(peer, id, [[{"timestamp", div(now(), 1_000) - 60}]])
    assert %{lag: lag} = feed(client)
    assert lag in 60_000..75_000
    feed(peer, id, [[{"timestamp", 0}], [{"timestamp", now() + 60_000}]])
    assert %{lag: lag} = feed(client)
    assert lag < 0

    {client, peer, id, _listener} = start(timestamp: "sent")
    feed(peer, id, [[{"timestamp", now()}, {"sent", now() - 5_000}]])
    assert %{lag: lag} = feed(client)
    assert lag in 5_000..15_000
  end

  for {name, sequence, numbers, expected} <- [
        {"in order", "n", [5, 6, 7], {0, 0, 0}},
        {"with gaps", "n", [5, 7, 8, 12], {2, 4, 0}},
        {"with repeats", "n", [5, 6, 6, 5, 7], {0, 0, 2}},
        {"that begins again", {"n", 100}, [98, 99, 0, 1, 3, 99, 4], {1, 1, 1}},
        {"with what is no number", "n", [5, "x", "", 6], {0, 0, 0}}
      ] do
    test "a sequence #{name}" do
      {client, peer, id, _listener} = start(sequence: unquote(Macro.escape(sequence)))
      feed(peer, id, for(number <- unquote(numbers), do: [{"n", number}]))
      feed = feed(client)
      assert {feed.gaps, feed.missing, feed.repeats} == unquote(Macro.escape(expected))
    end
  end

  test "what was missed between two connections is a gap" do
    {client, peer, id, listener} = start(sequence: "n")
    feed(peer, id, [[{"n", 1}], [{"n", 2}]])
    Peer.close(peer)
    peer = accept_connected(listener)
    {%{"id" => id}, ""} = confirm(peer, :subscribe)
    feed(peer, id, [[{"n", 5}]])
    assert %{messages: 3, gaps: 1, missing: 2} = feed(client)
  end

  defmodule Crashing do
    use Barytherium.Consumer, subscribe: {"/queue/a", sequence: "n"}

    @impl true
    def handle_message(%Frame{body: "crash"}, _test), do: Process.exit(self(), :kill)

    def handle_message(_frame, test) do
      send(test, :handled)
      {:ack, test}
    end
  end

  test "what still comes on an old connection counts no more" do
    {consumer, old, id, listener} = start_consumer(Crashing, backoff: {1, 10})
    [client] = Barytherium.Consumer.clients(consumer)
    message(old, id, "crash", [{"n", 1}])
    peer = accept_connected(listener)
    {%{"id" => new}, ""} = confirm(peer, :subscribe)
    message(peer, new, "body", [{"n", 2}])
    assert_receive :handled
    message(old, id, "body", [{"n", 1}])
    disconnect(old)
    assert %{messages: 2, repeats: 0} = feed(client)
    expect(peer, :ack)
    stop_consumer(consumer, peer)
  end

  test "without limits only the connection matters" do
    {client, peer, _id, _listener} = start()
    assert Client.health(client) == :ok
    Peer.close(peer)
    eventually(fn -> Client.health(client) == {:error, [:not_connected]} end)
  end

  test "silence, lag, and what follows, are told once each" do
    {client, peer, id, listener} = start(max_silence: 500, max_lag: 1_000)
    assert [{:silent, "/queue/a", silent}] = told()
    assert silent > 500
    assert {:error, [{:silent, "/queue/a", _longer}]} = Client.health(client)
    feed(peer, id, [[{"timestamp", now() - 5_000}]])
    # On a slow machine it may be silent again.
    assert {:error, problems} = Client.health(client)
    assert {:lagging, "/queue/a", lag} = List.keyfind(problems, :lagging, 0)
    assert lag in 5_000..15_000
    assert List.keymember?(told(), :lagging, 0)
    Peer.close(peer)
    peer = accept_connected(listener)
    confirm(peer, :subscribe)
  end

  test "a feed that is silent can have its connection made anew" do
    {client, peer, _id, listener} = start(max_silence: 300, on_silence: :reconnect)
    disconnect(peer)
    assert_receive {:barytherium, :client, {{:disconnected, %{reason: :silent}}, ^client}}, 5_000
    peer = accept_connected(listener)
    {%{"id" => id}, ""} = confirm(peer, :subscribe)
    feed(peer, id, [[]])
  end

  test "a subscription that is refused is told" do
    {listener, url} = broker()
    {:ok, client} = Client.start_link(url: url, backoff: {1, 10})
    peer = accept_connected(listener)
    {_subscription, _headers} = subscribed(client, peer)
    Peer.close(peer)
    # It is refused on the next connection, and left out from then on.
    peer = accept_connected(listener)
    {%{"receipt" => receipt}, ""} = expect(peer, :subscribe)
    reply(peer, :error, [{"message", "denied"}, {"receipt-id", receipt}])
    Peer.close(peer)
    accept_connected(listener)
    eventually(fn -> Client.health(client) == {:error, [{:not_subscribed, "/queue/a"}]} end)
  end

  defmodule Slow do
    use Barytherium.Consumer, subscribe: "/queue/a", max_handling: 300

    @impl true
    def handle_message(_frame, test) do
      send(test, {:handling, self()})
      receive do: (:go -> {:ack, test})
    end
  end

  test "messages that wait while none is handled" do
    {consumer, peer, id, _listener} = start_consumer(Slow)
    [client] = Barytherium.Consumer.clients(consumer)
    message(peer, id, "1")
    assert_receive {:handling, worker}
    eventually(fn -> match?({:error, [{:not_handled, _time}]}, Client.health(client)) end)
    send(worker, :go)
    eventually(fn -> Client.health(client) == :ok end)
    expect(peer, :ack)
    stop_consumer(consumer, peer)
  end

  for opts <- [[handlers: 2], [handlers: 2, key: {:header, "key"}]] do
    test "one of several handlers that is stuck, #{inspect(opts)}" do
      {consumer, peer, id, _listener} = start_consumer(Slow, unquote(opts))
      [client] = Barytherium.Consumer.clients(consumer)
      message(peer, id, "1", [{"key", "a"}])
      assert_receive {:handling, stuck}
      eventually(fn -> match?({:error, [{:not_handled, _time}]}, Client.health(client)) end)
      send(stuck, :go)
      expect(peer, :ack)
      assert Client.health(client) == :ok
      stop_consumer(consumer, peer)
    end
  end

  defmodule Timed do
    use Barytherium.Consumer, subscribe: ["/queue/a", {"/queue/b", ack: :auto}]

    @impl true
    def handle_message(frame, test) do
      send(test, {:handling, frame.body, self()})
      receive do: (:go_on -> {:ack, test})
    end
  end

  defp count(histogram), do: histogram |> Enum.map(&elem(&1, 1)) |> Enum.sum()
  defp longest(histogram), do: Histogram.quantile(histogram, 1.0)

  for opts <- [[], [handlers: 2], [handlers: 2, key: {:header, "k"}]] do
    test "how long messages take to their callback and to their acknowledgement, #{inspect(opts)}" do
      broker = start_supervised!(TestBroker)
      url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"

      {:ok, consumer} =
        Timed.start_link([url: url, init_arg: self()] ++ unquote(Macro.escape(opts)))

      for name <- ["a", "b"], do: TestBroker.await_subscription(broker, "/queue/#{name}")
      [client] = Consumer.clients(consumer)
      assert [%{to_start: [], to_ack: []}, %{to_start: [], to_ack: []}] = Client.feeds(client)

      # Each comes alone. The second waits for the first only if one process handles both.
      TestBroker.publish(broker, "/queue/a", "1", [{"k", "1"}])
      assert_receive {:handling, "1", handler}
      assert [%{to_start: [{_time, 1}], to_ack: []}, %{to_start: []}] = Client.feeds(client)
      Process.sleep(50)
      send(handler, :go_on)
      TestBroker.assert_acked(broker, "/queue/a", "1")
      TestBroker.publish(broker, "/queue/b", "2", [{"k", "1"}])
      assert_receive {:handling, "2", handler}
      send(handler, :go_on)
      assert [a, b] = Client.feeds(client)
      assert %{to_start: [{to_start, 1}], to_ack: [{to_ack, 1}]} = a
      # From the socket, so the time in the callback is in it.
      assert to_ack >= 50_000 and to_start < to_ack
      # Without acknowledgements there is no such time.
      assert {count(b.to_start), b.to_ack} == {1, []}
    end
  end

  test "the time in the mailbox is in it, and it is not that of another message" do
    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    {:ok, consumer} = Timed.start_link(url: url, init_arg: self())
    TestBroker.await_subscription(broker, "/queue/a")
    for n <- 1..3, do: TestBroker.publish(broker, "/queue/a", "#{n}")

    for n <- 1..3 do
      body = "#{n}"
      assert_receive {:handling, ^body, handler}
      Process.sleep(30)
      send(handler, :go_on)
      TestBroker.assert_acked(broker, "/queue/a", body)
    end

    [client] = Consumer.clients(consumer)
    assert [%{to_start: to_start, to_ack: to_ack}, _other] = Client.feeds(client)
    assert longest(to_ack) >= 30_000
    # How many lists they came in is the receive loop's business.
    assert count(to_start) in 1..3 and count(to_ack) == count(to_start)
    if count(to_start) == 3, do: assert(longest(to_start) >= 60_000 and longest(to_ack) >= 90_000)
  end

  test "each subscription has its own delays, and one without acknowledgements none to them" do
    broker = start_supervised!({TestBroker, rate: 200})
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    {:ok, consumer} = Timed.start_link(url: url, init_arg: self())
    for name <- ["a", "b"], do: TestBroker.await_subscription(broker, "/queue/#{name}")
    # While one is handled, those of both subscriptions come together.
    assert_receive {:handling, _body, handler}
    Process.sleep(100)
    send(handler, :go_on)
    for _ <- 1..30, do: assert_receive({:handling, _, _}) && send(handler, :go_on)
    [client] = Consumer.clients(consumer)
    assert [%{to_start: a, to_ack: [_ | _]}, %{to_start: b, to_ack: []}] = Client.feeds(client)
    assert count(a) > 0 and count(b) > 0
    assert abs(count(a) - count(b)) <= 3
  end

  test "after a lost connection there are no times of what was not handled" do
    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    {:ok, consumer} = Timed.start_link(url: url, init_arg: self(), backoff: {60_000, 60_000})
    TestBroker.await_subscription(broker, "/queue/a")
    for n <- 1..3, do: TestBroker.publish(broker, "/queue/a", "#{n}")
    assert_receive {:handling, "1", handler}
    [client] = Consumer.clients(consumer)
    TestBroker.fault(broker, :close)
    eventually(fn -> Client.status(client).state != :connected end)
    send(handler, :go_on)
    # The handler has done what it had when it answers.
    :sys.get_state(handler)
    assert [%{to_start: to_start, to_ack: []}, _other] = Client.feeds(client)
    assert count(to_start) == 1
    refute_received {:handling, _more, _handler}
  end

  test "a connection whose consumer is slow does not end" do
    subscribe = {"/queue/a", max_silence: 1_500, on_silence: :reconnect}

    {consumer, peer, id, _listener} =
      start_consumer(Slow, subscribe: subscribe, max_handling: :infinity)

    [client] = Barytherium.Consumer.clients(consumer)
    message(peer, id, "1")
    assert_receive {:handling, worker}
    eventually(fn -> match?({:error, [{:silent, _, _}]}, Client.health(client)) end)
    # It looks every second.
    Process.send_after(self(), :later, 1_200)
    assert_receive :later, 5_000
    send(worker, :go)
    expect(peer, :ack)
    stop_consumer(consumer, peer)
  end

  test "a connection that is paused does not end" do
    {listener, url} = broker()
    {:ok, client} = Client.start_link(url: url, high_water_mark: 1, listener: self())
    peer = accept_connected(listener)
    behind = spawn_link(fn -> receive(do: (:never -> :ok)) end)
    opts = [ack: :auto, max_silence: 100, on_silence: :reconnect, to: behind]
    {_subscription, %{"id" => id}} = subscribed(client, peer, opts)
    # More than what goes through as trials.
    body = :binary.copy("body", 50_000)
    headers = [{"subscription", id}, {"message-id", "1"}, {"destination", "/queue/a"}]
    writer = spawn_link(fn -> for _n <- 1..30, do: reply(peer, :message, headers, body) end)
    assert [{:silent, "/queue/a", _time}] = told()
    Process.send_after(self(), :later, 2_200)
    assert_receive :later, 5_000
    assert {:error, [{:silent, "/queue/a", _time}]} = Client.health(client)
    refute_received {:barytherium, :client, {{:disconnected, _reason}, _client}}
    Process.unlink(writer)
    Process.exit(writer, :kill)
  end

  test "a subscription of its own limits is not silent when it is new, nor because of another one" do
    {client, peer, _id, _listener} = start(max_silence: 1)
    assert [{:silent, "/queue/a", _time}] = told()
    opts = [ack: :auto, max_silence: 600_000, on_silence: :reconnect]
    subscribed(client, peer, opts)
    assert {:error, [{:silent, "/queue/a", _time}]} = Client.health(client)
    # A stray message, and then a look.
    send(client, :health)
    Process.send_after(self(), :later, 1_200)
    assert_receive :later, 5_000
    assert {:error, [{:silent, "/queue/a", _time}]} = Client.health(client)
  end

  defmodule Both do
    use Barytherium.Consumer, subscribe: {"/queue/a", ack: :auto, sequence: "n"}, concurrency: 2

    @impl true
    def handle_message(_frame, test) do
      send(test, :handled)
      {:ack, test}
    end
  end

  test "each connection of a consumer counts for itself" do
    {listener, url} = broker()
    {:ok, consumer} = Both.start_link(url: url, init_arg: self())

    for number <- [1, 100] do
      peer = accept_connected(listener)
      {%{"id" => id}, ""} = confirm(peer, :subscribe)
      message(peer, id, "1", [{"n", number}])
      assert_receive :handled
    end

    for client <- Barytherium.Consumer.clients(consumer),
        do: assert(%{messages: 1, gaps: 0, repeats: 0} = feed(client))
  end

  test "mistakes are told" do
    {client, _peer, _id, _listener} = start()

    for opts <- [
          [sequence: ""],
          [sequence: {"n", 1}],
          [sequence: {"n", 2 ** 63}],
          [max_silence: -1],
          [max_silence: 0],
          [on_silence: :reconnect],
          [on_silence: :panic],
          [timestamp: ""]
        ] do
      assert_raise ArgumentError, fn -> Client.subscribe(client, "/queue/b", opts) end
    end
  end
end
