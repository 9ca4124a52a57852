defmodule Barytherium.TestBrokerQueuesTest do
  use ExUnit.Case, async: true

  alias Barytherium.{BrokerScript, Client, Frame, TestBroker}

  @moduletag capture_log: true

  for like <- [nil, :rabbitmq, :activemq] do
    test "over a socket random scripts have the trace of the model, like #{inspect(like)}" do
      broker = start_supervised!({TestBroker, like: unquote(like)})

      for seed <- 1..3 do
        :rand.seed(:exsss, seed)
        {steps, expected} = BrokerScript.random(unquote(like), 60)
        assert {seed, BrokerScript.play(steps, TestBroker.port(broker))} == {seed, expected}
      end
    end
  end

  defp broker(opts \\ []), do: start_supervised!({TestBroker, opts})

  defp client(broker) do
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    client = start_supervised!({Client, url: url, backoff: {10, 10}}, id: make_ref())
    # It is connected then, so that `subscribe/3` waits for the receipt.
    :ok = Client.publish(client, "/topic/nobody", "", wait: true)
    client
  end

  # A client with a subscription of this process.
  defp subscribed(broker, destination, opts \\ []) do
    client = client(broker)
    {:ok, subscription} = Client.subscribe(client, destination, opts)
    {client, subscription}
  end

  # The next `count` messages of a subscription, each with whether it was delivered before.
  defp messages(_subscription, 0), do: []

  defp messages(subscription, count) do
    assert_receive {:barytherium, :messages, {frames, ^subscription}}, 5_000
    frames ++ messages(subscription, count - length(frames))
  end

  defp bodies(frames), do: for(frame <- frames, do: {frame.body, redelivered?(frame)})
  defp redelivered?(frame), do: Frame.header(frame, "redelivered") == "true"

  defp publish(broker, destination, bodies),
    do: for(body <- bodies, do: :ok = TestBroker.publish(broker, destination, body))

  test "a queue keeps what nobody takes, a topic does not" do
    broker = broker()
    for destination <- ["/queue/a", "/topic/a"], do: publish(broker, destination, ["before"])
    {_client, queue} = subscribed(broker, "/queue/a")
    {_client, topic} = subscribed(broker, "/topic/a")
    publish(broker, "/topic/a", ["after"])
    assert [{"before", false}] = bodies(messages(queue, 1))
    assert [{"after", false}] = bodies(messages(topic, 1))
  end

  test "subscriptions to a queue compete, and all to a topic get a copy" do
    broker = broker()
    [{_, one}, {_, other}] = for _ <- 1..2, do: subscribed(broker, "/queue/a")
    publish(broker, "/queue/a", ["1", "2", "3", "4"])
    assert [{"1", _}, {"3", _}] = bodies(messages(one, 2))
    assert [{"2", _}, {"4", _}] = bodies(messages(other, 2))

    topics = for _ <- 1..2, do: subscribed(broker, "/topic/a")
    publish(broker, "/topic/a", ["5"])
    for {_client, topic} <- topics, do: assert([{"5", _}] = bodies(messages(topic, 1)))
  end

  test "a subscription gets no more than its prefetch limit before it acknowledges" do
    broker = broker()
    {client, subscription} = subscribed(broker, "/queue/a", ack: :client, prefetch: 2)
    publish(broker, "/queue/a", ["1", "2", "3", "4", "5"])
    assert [_one, two] = messages(subscription, 2)
    refute_receive {:barytherium, :messages, _more}, 50
    :ok = Client.ack(client, two)
    assert [{"3", false}, {"4", false}] = bodies(messages(subscription, 2))
  end

  test "what is not acknowledged goes to others when the connection or the subscription ends" do
    broker = broker()
    {client, first} = subscribed(broker, "/queue/a", ack: :client_individual, prefetch: 10)
    publish(broker, "/queue/a", ["1", "2", "3"])
    [_one, two, _three] = messages(first, 3)
    :ok = Client.ack(client, two)
    TestBroker.assert_acked(broker, "/queue/a", "2")
    :ok = Client.unsubscribe(client, first)

    {_client, second} = subscribed(broker, "/queue/a", ack: :client_individual, prefetch: 10)
    assert [{"1", true}, {"3", true}] = bodies(messages(second, 2))
    # The client subscribes again.
    :ok = TestBroker.fault(broker, :close)
    assert [{"1", true}, {"3", true}] = bodies(messages(second, 2))
  end

  test "a refused message goes to the queue for dead letters" do
    for {like, destination, headers} <- [
          {nil, "/queue/DLQ", []},
          {:activemq, "/queue/ActiveMQ.DLQ", [{"persistent", "true"}]}
        ] do
      {:ok, broker} = TestBroker.start_link(like: like)
      {client, subscription} = subscribed(broker, "/queue/a", ack: :client_individual)
      {_client, dead} = subscribed(broker, destination)
      TestBroker.publish(broker, "/queue/a", "no", headers)
      :ok = Client.nack(client, messages(subscription, 1))
      assert [%Frame{body: "no"} = letter] = messages(dead, 1)
      assert Frame.header(letter, "original-destination") == "/queue/a"
      GenServer.stop(broker)
    end
  end

  test "like RabbitMQ it delivers a refused message again, or sends it where the subscription says" do
    broker = broker(like: :rabbitmq)
    letters = [{"x-dead-letter-exchange", ""}, {"x-dead-letter-routing-key", "dead"}]
    opts = [ack: :client_individual, headers: letters]
    {client, subscription} = subscribed(broker, "/queue/a", opts)
    {_client, dead} = subscribed(broker, "/queue/dead")
    publish(broker, "/queue/a", ["no"])
    :ok = Client.nack(client, messages(subscription, 1))
    assert [%Frame{body: "no"} = again] = messages(subscription, 1)
    assert redelivered?(again)
    :ok = Client.nack(client, again, [{"requeue", "false"}])
    assert [%Frame{body: "no"} = letter] = messages(dead, 1)
    assert Frame.header(letter, "x-first-death-queue") == "a"
  end

  test "assertions find what clients have published, each message once" do
    broker = broker()
    client = client(broker)
    publish(broker, "/queue/a", ["of the broker"])
    waiting = Task.async(fn -> TestBroker.assert_published(broker, "/queue/a", "1", 5_000) end)

    for body <- ["1", "2"],
        do: :ok = Client.publish(client, "/queue/a", body, headers: [{"k", "v"}], wait: true)

    assert %Frame{command: :send, body: "1"} = frame = Task.await(waiting)
    assert Frame.header(frame, "k") == "v"

    assert TestBroker.assert_published(broker, "/queue/a", &(&1.body in ["1", "2"])).body == "2"

    error =
      assert_raise ExUnit.AssertionError, fn ->
        TestBroker.assert_published(broker, "/queue/a", "2", 0)
      end

    assert error.message =~ ~r/within 0 ms no message was published to \/queue\/a that is "2"/
    # An error in the function of the test is the test's, not the broker's.
    :ok = Client.publish(client, "/queue/a", "3")
    raising = fn _frame -> raise "mine" end
    assert_raise RuntimeError, fn -> TestBroker.assert_published(broker, "/queue/a", raising) end
    assert TestBroker.assert_published(broker, "/queue/a", "3").body == "3"
  end

  test "assertions find what was acknowledged, and say what was there instead" do
    broker = broker()
    {client, subscription} = subscribed(broker, "/queue/a", ack: :client_individual)
    publish(broker, "/queue/a", ["1", "2"])
    [one, two] = messages(subscription, 2)
    :ok = Client.ack(client, one)

    assert %Frame{command: :message, body: "1"} =
             TestBroker.assert_acked(broker, "/queue/a", &(&1.body =~ ~r/\d/))

    :ok = Client.nack(client, two)
    TestBroker.await_acknowledgements(broker, "/queue/a")

    assert_raise ExUnit.AssertionError, ~r/There were: \[\]/, fn ->
      TestBroker.assert_acked(broker, "/queue/a", "2", 0)
    end
  end

  test "a frame is refused on demand, once" do
    # The connection goes on after an ERROR.
    broker = broker(like: :activemq)
    client = client(broker)
    :ok = TestBroker.fault(broker, {:refuse, :send, "no space"})

    assert {:error, %{reason: :refused} = error} =
             Client.publish(client, "/queue/a", "x", wait: true)

    assert Exception.message(error) =~ "no space"
    assert :ok = Client.publish(client, "/queue/a", "y", wait: true)
    assert TestBroker.assert_published(broker, "/queue/a", fn _any -> true end).body == "y"
  end

  test "a login is refused on demand" do
    broker = broker()
    :ok = TestBroker.fault(broker, {:refuse, :connect, "Bad CONNECT"})
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    start_supervised!({Client, url: url, listener: self(), backoff: {10, 10}})
    assert_receive {:barytherium, :client, {{:connection_failure, error}, _client}}
    assert Exception.message(error) =~ "Bad CONNECT"
    assert_receive {:barytherium, :client, {{:connected, _info}, _client}}
  end

  test "connections end after a number of frames, also the next one" do
    broker = broker()
    # CONNECTED, the receipts of SEND and SUBSCRIBE, two messages.
    :ok = TestBroker.fault(broker, {:close, 5})
    {_client, subscription} = subscribed(broker, "/queue/a", ack: :client_individual)
    publish(broker, "/queue/a", ["1", "2", "3"])

    assert [{"1", false}, {"2", false}, {"1", true}, {"2", true}, {"3", true}] =
             bodies(messages(subscription, 5))
  end

  test "everything comes later on demand" do
    broker = broker()
    {_client, subscription} = subscribed(broker, "/topic/a")
    :ok = TestBroker.fault(broker, {:delay, 100})
    started = System.monotonic_time(:millisecond)
    publish(broker, "/topic/a", ["1", "2"])
    assert [{"1", _}, {"2", _}] = bodies(messages(subscription, 2))
    assert System.monotonic_time(:millisecond) - started >= 100
  end

  test "a silent connection is found dead by its heart-beats, and its messages go to the next one" do
    broker = broker(heart_beat: {100, 100})
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    opts = [url: url, backoff: {10, 10}, heart_beat: {100, 100}, listener: self()]
    client = start_supervised!({Client, opts})
    {:ok, subscription} = Client.subscribe(client, "/queue/a", ack: :client_individual)
    publish(broker, "/queue/a", ["1"])
    assert [{"1", false}] = bodies(messages(subscription, 1))
    :ok = TestBroker.fault(broker, :silence)

    assert_receive {:barytherium, :client, {{:disconnected, %{reason: :timeout}}, _client}},
                   10_000

    assert [{"1", true}] = bodies(messages(subscription, 1))
  end

  test "an ERROR comes on demand" do
    broker = broker()
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    start_supervised!({Client, url: url, listener: self(), backoff: {10, 10}})
    assert_receive {:barytherium, :client, {{:connected, _info}, _client}}
    :ok = TestBroker.fault(broker, {:error, "going down"})
    assert_receive {:barytherium, :client, {{:error, %Frame{} = error}, _client}}
    assert Frame.header(error, "message") == "going down"
    assert_receive {:barytherium, :client, {{:disconnected, _error}, _client}}
  end

  test "an unknown broker to imitate is a mistake" do
    assert_raise ArgumentError, ~r/:rabbitmq or :activemq/, fn ->
      TestBroker.start_link(like: :artemis)
    end
  end
end
