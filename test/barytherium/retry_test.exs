defmodule Barytherium.RetryTest do
  @moduledoc "`max_attempts`, `retry_delay` and `on_exhausted` of consumers, with the broker for tests of users."
  use Barytherium.ClientCase, async: true

  alias Barytherium.TestBroker

  # Raises for bodies that begin with "bad", and tells of each attempt.
  defmodule Failing do
    use Barytherium.Consumer

    @impl true
    def handle_message(frame, test) do
      send(test, {:tried, frame.body, System.monotonic_time(:millisecond)})
      if frame.body =~ ~r/^bad/, do: raise("swordfish")
      {:ack, test}
    end
  end

  # Raises the first time.
  defmodule FailingOnce do
    use Barytherium.Consumer

    @impl true
    def handle_message(frame, test) do
      send(test, {:tried, frame.body})
      if Process.put(frame.body, :tried) == nil, do: raise("once")
      {:ack, test}
    end
  end

  defmodule FailingBatch do
    use Barytherium.Consumer

    @impl true
    def handle_batch(frames, test) do
      bodies = Enum.map(frames, & &1.body)
      send(test, {:tried, bodies})
      if "bad" in bodies, do: raise("batch")
      {:ack, test}
    end
  end

  defmodule Always do
    use Barytherium.Consumer

    @impl true
    def handle_message(_frame, _state), do: raise("always")
  end

  defp start(module, opts, broker_opts \\ []) do
    broker = start_supervised!({TestBroker, broker_opts})
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    own = [url: url, subscribe: "/queue/a", init_arg: self(), retry_delay: {1, 4}]
    child = {module, Keyword.merge(own, opts)}
    consumer = start_supervised!(child, id: make_ref(), restart: :temporary)
    TestBroker.await_subscription(broker, "/queue/a")
    {broker, consumer}
  end

  # A consumer of batches that are full when these messages have come.
  defp start_batches(bodies, opts) do
    own = [on_exhausted: {:publish, "/queue/dead"}, batch_timeout: 60_000]
    {broker, _consumer} = start(FailingBatch, own ++ opts)
    for body <- bodies, do: TestBroker.publish(broker, "/queue/a", body)
    broker
  end

  defp tried(body, count), do: for(_n <- 1..count, do: assert_receive({:tried, ^body, at}) && at)

  defp dead(broker, destination, body) do
    frame = TestBroker.assert_published(broker, destination, body)
    Frame.headers_to_map(frame.headers)
  end

  for like <- [:rabbitmq, :activemq] do
    test "a message is tried so often, and then a copy moves (#{like})" do
      opts = [max_attempts: 3, on_exhausted: {:publish, "/queue/dead"}]
      {broker, _consumer} = start(Failing, opts, like: unquote(like))
      headers = [{"a", "b"}, {"persistent", "true"}]
      log = capture_log(fn -> fail(broker, headers) end)
      refute log =~ "swordfish" and log =~ "the body"
      # Nothing is left, and the others are not disturbed.
      assert_receive {:tried, "good", _at}
      refute_receive {:tried, "bad", _at}, 50
      :ok = TestBroker.await_acknowledgements(broker, "/queue/a")
    end
  end

  defp fail(broker, headers) do
    TestBroker.publish(broker, "/queue/a", "bad", headers)
    TestBroker.publish(broker, "/queue/a", "good")
    tried("bad", 3)
    sent = dead(broker, "/queue/dead", "bad")
    assert %{"original-destination" => "/queue/a", "a" => "b", "persistent" => "true"} = sent
    refute Enum.any?(~w(subscription ack message-id redelivered), &is_map_key(sent, &1))
    TestBroker.assert_acked(broker, "/queue/a", "bad")
  end

  test "the message behind it waits for the attempts, which come after waits that double" do
    {broker, _consumer} = start(Failing, max_attempts: 4, retry_delay: {20, 50})
    for body <- ["bad", "good"], do: TestBroker.publish(broker, "/queue/a", body)
    [one, two, three, four] = tried("bad", 4)
    [after_all] = tried("good", 1)
    assert two - one >= 20
    assert three - two >= 40
    assert four - three >= 50
    assert after_all >= four
  end

  test "a success ends the counting" do
    {broker, _consumer} = start(FailingOnce, max_attempts: 2)

    for body <- ["1", "2", "3"] do
      TestBroker.publish(broker, "/queue/a", body)
      for _n <- 1..2, do: assert_receive({:tried, ^body})
      TestBroker.assert_acked(broker, "/queue/a", body)
    end
  end

  test "refused, by default, in the way that ends it (RabbitMQ)" do
    {broker, _consumer} = start(Failing, [max_attempts: 2], like: :rabbitmq)
    TestBroker.publish(broker, "/queue/a", "bad")
    tried("bad", 2)
    :ok = TestBroker.await_acknowledgements(broker, "/queue/a")
    refute_receive {:tried, "bad", _at}, 50
  end

  test "refused, by default, goes to the dead letters (ActiveMQ)" do
    {broker, _consumer} = start(Failing, [max_attempts: 2], like: :activemq)
    TestBroker.publish(broker, "/queue/a", "bad", [{"persistent", "true"}])
    tried("bad", 2)
    client = start_supervised!({Client, url: "stomp://127.0.0.1:#{TestBroker.port(broker)}"})
    {:ok, subscription} = Client.subscribe(client, "/queue/ActiveMQ.DLQ")
    assert [%Frame{body: "bad"}] = receive_messages(subscription, 1)
  end

  test "a function decides, and if it fails the message is delivered again" do
    test = self()

    decide = fn frame, reason ->
      send(test, {:exhausted, frame.body, reason})

      case frame.body do
        "bad1" -> :ack
        "bad2" -> raise("function")
        "bad3" -> {:ack, nil}
        "bad4" -> :nack
      end
    end

    opts = [max_attempts: 1, on_exhausted: decide]
    {broker, _consumer} = start(Failing, opts, like: :rabbitmq)
    TestBroker.publish(broker, "/queue/a", "bad1")
    assert_receive {:exhausted, "bad1", %RuntimeError{}}
    TestBroker.assert_acked(broker, "/queue/a", "bad1")
    TestBroker.publish(broker, "/queue/a", "bad2")
    for _n <- 1..2, do: assert_receive({:exhausted, "bad2", _reason})
    stop_supervised!(TestBroker)

    log =
      capture_log(fn ->
        {broker, _consumer} = start(Failing, opts, like: :rabbitmq)
        TestBroker.publish(broker, "/queue/a", "bad3")
        for _n <- 1..2, do: assert_receive({:exhausted, "bad3", _reason})
        stop_supervised!(TestBroker)
      end)

    assert log =~ "returned something that is not :ack, :nack or :noreply"
    {broker, _consumer} = start(Failing, opts, like: :rabbitmq)
    TestBroker.publish(broker, "/queue/a", "bad4")
    assert_receive {:exhausted, "bad4", _reason}
    :ok = TestBroker.await_acknowledgements(broker, "/queue/a")
    refute_receive {:exhausted, "bad4", _reason}, 50
  end

  test "what the broker has counted is counted, where it counts" do
    for {like, name, count, left} <- [
          {:rabbitmq, "x-delivery-count", "2", 1},
          {:rabbitmq, "x-delivery-count", "0", 3},
          {:rabbitmq, "x-delivery-count", "many", 3},
          {:rabbitmq, "x-delivery-count", "3", 0},
          {:activemq, "x-delivery-count", "3", 3},
          {:activemq, "JMSXDeliveryCount", "2", 2}
        ] do
      opts = [max_attempts: 3, on_exhausted: {:publish, "/queue/dead"}]
      {broker, _consumer} = start(Failing, opts, like: like)
      TestBroker.publish(broker, "/queue/a", "bad", [{name, count}])
      if left > 0, do: tried("bad", left)
      refute is_map_key(dead(broker, "/queue/dead", "bad"), name)
      refute_received {:tried, "bad", _at}
      stop_supervised!(TestBroker)
    end
  end

  test "what was delivered too often comes in its turn" do
    test = self()

    function = fn frame, reason ->
      send(test, {:exhausted, frame.body, reason})
      :ack
    end

    opts = [max_attempts: 2, on_exhausted: function]
    {broker, _consumer} = start(Failing, opts, like: :rabbitmq)
    TestBroker.publish(broker, "/queue/a", "good")
    TestBroker.publish(broker, "/queue/a", "bad", [{"x-delivery-count", "2"}])
    assert_receive {:tried, "good", _at}
    assert_receive {:exhausted, "bad", :delivered_too_often}
    refute_received {:tried, "bad", _at}
  end

  test "of a batch only those are given up that fail by themselves" do
    broker = start_batches(["1", "bad", "2"], max_attempts: 2, batch_size: 3)

    for bodies <- [["1", "bad", "2"], ["1"], ["bad"], ["2"]],
        do: assert_receive({:tried, ^bodies})

    dead(broker, "/queue/dead", "bad")
    for body <- ["1", "bad", "2"], do: TestBroker.assert_acked(broker, "/queue/a", body)

    assert_raise ExUnit.AssertionError, fn ->
      TestBroker.assert_published(broker, "/queue/dead", "1", 10)
    end
  end

  test "of several of a batch each has all of its attempts, and so has the next batch" do
    start_batches(["bad", "1", "2", "bad"], max_attempts: 3, batch_size: 2)

    for together <- [["bad", "1"], ["2", "bad"]] do
      for _n <- 1..2, do: assert_receive({:tried, ^together})
      for body <- together, do: assert_receive({:tried, [^body]})
    end

    refute_received {:tried, _more}
  end

  test "a batch whose messages were delivered too often is divided" do
    opts = [max_attempts: 2, on_exhausted: {:publish, "/queue/dead"}, batch_size: 3]
    {broker, _consumer} = start(FailingBatch, opts, like: :rabbitmq)
    headers = [{"x-delivery-count", "2"}]

    for {body, headers} <- [{"1", []}, {"bad", headers}, {"2", []}],
        do: TestBroker.publish(broker, "/queue/a", body, headers)

    for bodies <- [["1"], ["2"]], do: assert_receive({:tried, ^bodies})
    dead(broker, "/queue/dead", "bad")
  end

  test "what the broker has forgotten is tried on, and given up when the consumer stops" do
    for stop <- [false, true] do
      opts = [
        subscribe: {"/topic/a", ack: :auto},
        max_attempts: 2,
        retry_delay: if(stop, do: {60_000, 60_000}, else: {300, 300}),
        on_exhausted: {:publish, "/queue/dead"},
        backoff: {1, 10}
      ]

      broker = start_supervised!(TestBroker)
      url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
      {:ok, consumer} = Failing.start_link([url: url, init_arg: self()] ++ opts)
      TestBroker.await_subscription(broker, "/topic/a")
      TestBroker.publish(broker, "/topic/a", "bad")
      tried("bad", 1)

      if stop do
        Supervisor.stop(consumer)
      else
        TestBroker.fault(broker, :close)
        tried("bad", 1)
      end

      dead(broker, "/queue/dead", "bad")
      unless stop, do: Supervisor.stop(consumer)
      stop_supervised!(TestBroker)
    end
  end

  test "not with ack: :client, where a decision on one message covers others" do
    opts = [url: "stomp://h", subscribe: {"/queue/a", ack: :client}, max_attempts: 2]
    assert_raise ArgumentError, ~r/not with ack: :client/, fn -> Failing.start_link(opts) end
  end

  test "what another process is to acknowledge is not decided on" do
    defmodule Later do
      use Barytherium.Consumer

      @impl true
      def handle_message(%{body: "bad"}, _state), do: raise("bad")
      def handle_message(_frame, state), do: {:noreply, state}
    end

    for on_exhausted <- [:nack, {:publish, "/queue/dead"}], like <- [:rabbitmq, :activemq] do
      opts = [max_attempts: 1, on_exhausted: on_exhausted]
      {broker, consumer} = start(Later, opts, like: like)
      for body <- ["open", "bad"], do: TestBroker.publish(broker, "/queue/a", body)
      eventually(fn -> match?({:error, _}, unsettled(broker)) end)
      Supervisor.stop(consumer)

      client =
        start_supervised!({Client, url: "stomp://127.0.0.1:#{TestBroker.port(broker)}"},
          id: make_ref()
        )

      {:ok, subscription} = Client.subscribe(client, "/queue/a")
      assert [%Frame{body: "open"}] = receive_messages(subscription, 1)
      stop_supervised!(TestBroker)
    end
  end

  # Until the bad one is decided on.
  defp unsettled(broker) do
    queues = :sys.get_state(broker).session.queues
    held = for {_key, %{held: held}} <- queues.subscriptions, do: held
    if held == [1], do: {:error, :open}, else: :ok
  end

  test "in STOMP 1.0 nothing is lost where an acknowledgement is cumulative" do
    opts = [max_attempts: 1, versions: ["1.0"], backoff: {1, 10}]
    {broker, _consumer} = start(Failing, opts, like: :activemq)
    for body <- ["bad", "good"], do: TestBroker.publish(broker, "/queue/a", body)
    # As without a limit, on another connection.
    tried("bad", 2)
  end

  test "with ack: :auto there is nothing to acknowledge" do
    opts = [
      max_attempts: 2,
      on_exhausted: {:publish, "/queue/dead"},
      subscribe: {"/queue/a", ack: :auto}
    ]

    {broker, _consumer} = start(Failing, opts)
    TestBroker.publish(broker, "/queue/a", "bad")
    tried("bad", 2)
    dead(broker, "/queue/dead", "bad")
  end

  test "by key the others of the key wait" do
    opts = [
      max_attempts: 2,
      on_exhausted: {:publish, "/queue/dead"},
      handlers: 2,
      key: {:header, "k"}
    ]

    {broker, _consumer} = start(Failing, opts)
    for body <- ["bad", "1"], do: TestBroker.publish(broker, "/queue/a", body, [{"k", "x"}])
    tried("bad", 2)
    dead(broker, "/queue/dead", "bad")
    tried("1", 1)
    for body <- ["bad", "1"], do: TestBroker.assert_acked(broker, "/queue/a", body)
  end

  test "a consumer that stops does not wait, and the message is delivered again" do
    {broker, consumer} = start(Failing, max_attempts: 3, retry_delay: {60_000, 60_000})
    TestBroker.publish(broker, "/queue/a", "bad")
    tried("bad", 1)
    stopping = Task.async(fn -> Supervisor.stop(consumer) end)
    assert Task.await(stopping, 4_000) == :ok
    client = start_supervised!({Client, url: "stomp://127.0.0.1:#{TestBroker.port(broker)}"})
    {:ok, subscription} = Client.subscribe(client, "/queue/a")
    assert [%Frame{body: "bad"}] = receive_messages(subscription, 1)
  end

  test "a connection that ends does not wait either" do
    {broker, _consumer} =
      start(Failing, max_attempts: 2, retry_delay: {60_000, 60_000}, backoff: {1, 10})

    TestBroker.publish(broker, "/queue/a", "bad")
    tried("bad", 1)
    TestBroker.fault(broker, :close)
    # On the next connection it begins anew.
    tried("bad", 1)
  end

  test "what cannot be moved is delivered again" do
    opts = [max_attempts: 1, on_exhausted: {:publish, "/queue/dead"}]
    {broker, _consumer} = start(Failing, opts, like: :rabbitmq)
    TestBroker.fault(broker, {:refuse, :commit, "no"})

    log =
      capture_log(fn ->
        TestBroker.publish(broker, "/queue/a", "bad")
        tried("bad", 2)
        dead(broker, "/queue/dead", "bad")
      end)

    assert log =~ "cannot move a message"
  end

  test "an inflated body has no content-encoding, and one that is not keeps it" do
    for inflate <- [true, false] do
      destination = "/queue/dead#{inflate}"
      opts = [max_attempts: 1, on_exhausted: {:publish, destination}, inflate: inflate]
      {broker, _consumer} = start(Always, opts)
      body = :zlib.gzip("text")
      TestBroker.publish(broker, "/queue/a", body, [{"content-encoding", "gzip"}])
      headers = dead(broker, destination, if(inflate, do: "text", else: body))
      assert headers["content-encoding"] == if(inflate, do: nil, else: "gzip")
      stop_supervised!(TestBroker)
    end
  end
end
