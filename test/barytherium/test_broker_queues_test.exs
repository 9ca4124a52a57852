defmodule Barytherium.TestBrokerQueuesTest do
  use ExUnit.Case, async: true

  import Barytherium.ClientCase, only: [receive_messages: 2]
  import Barytherium.ReceiverCase, only: [eventually: 1]

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
    assert [{"before", false}] = bodies(receive_messages(queue, 1))
    assert [{"after", false}] = bodies(receive_messages(topic, 1))
  end

  test "subscriptions to a queue compete, and all to a topic get a copy" do
    broker = broker()
    [{_, one}, {_, other}] = for _ <- 1..2, do: subscribed(broker, "/queue/a")
    publish(broker, "/queue/a", ["1", "2", "3", "4"])
    assert [{"1", _}, {"3", _}] = bodies(receive_messages(one, 2))
    assert [{"2", _}, {"4", _}] = bodies(receive_messages(other, 2))

    topics = for _ <- 1..2, do: subscribed(broker, "/topic/a")
    publish(broker, "/topic/a", ["5"])
    for {_client, topic} <- topics, do: assert([{"5", _}] = bodies(receive_messages(topic, 1)))
  end

  test "a subscription gets no more than its prefetch limit before it acknowledges" do
    broker = broker()
    {client, subscription} = subscribed(broker, "/queue/a", ack: :client, prefetch: 2)
    publish(broker, "/queue/a", ["1", "2", "3", "4", "5"])
    assert [_one, two] = receive_messages(subscription, 2)
    refute_receive {:barytherium, :messages, _more}, 50
    :ok = Client.ack(client, two)
    assert [{"3", false}, {"4", false}] = bodies(receive_messages(subscription, 2))
  end

  test "what is not acknowledged goes to others when the connection or the subscription ends" do
    broker = broker()
    {client, first} = subscribed(broker, "/queue/a", ack: :client_individual, prefetch: 10)
    publish(broker, "/queue/a", ["1", "2", "3"])
    [_one, two, _three] = receive_messages(first, 3)
    :ok = Client.ack(client, two)
    TestBroker.assert_acked(broker, "/queue/a", "2")
    :ok = Client.unsubscribe(client, first)

    {_client, second} = subscribed(broker, "/queue/a", ack: :client_individual, prefetch: 10)
    assert [{"1", true}, {"3", true}] = bodies(receive_messages(second, 2))
    # The client subscribes again.
    :ok = TestBroker.fault(broker, :close)
    assert [{"1", true}, {"3", true}] = bodies(receive_messages(second, 2))
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
      :ok = Client.nack(client, receive_messages(subscription, 1))
      assert [%Frame{body: "no"} = letter] = receive_messages(dead, 1)
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
    :ok = Client.nack(client, receive_messages(subscription, 1))
    assert [%Frame{body: "no"} = again] = receive_messages(subscription, 1)
    assert redelivered?(again)
    :ok = Client.nack(client, again, [{"requeue", "false"}])
    assert [%Frame{body: "no"} = letter] = receive_messages(dead, 1)
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
    [one, two] = receive_messages(subscription, 2)
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
             bodies(receive_messages(subscription, 5))
  end

  test "everything comes later on demand" do
    broker = broker()
    {_client, subscription} = subscribed(broker, "/topic/a")
    :ok = TestBroker.fault(broker, {:delay, 100})
    started = System.monotonic_time(:millisecond)
    publish(broker, "/topic/a", ["1", "2"])
    assert [{"1", _}, {"2", _}] = bodies(receive_messages(subscription, 2))
    assert System.monotonic_time(:millisecond) - started >= 100
  end

  test "a silent connection is found dead by its heart-beats, and its messages go to the next one" do
    broker = broker(heart_beat: {100, 100})
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    opts = [url: url, backoff: {10, 10}, heart_beat: {100, 100}, listener: self()]
    client = start_supervised!({Client, opts})
    {:ok, subscription} = Client.subscribe(client, "/queue/a", ack: :client_individual)
    publish(broker, "/queue/a", ["1"])
    assert [{"1", false}] = bodies(receive_messages(subscription, 1))
    :ok = TestBroker.fault(broker, :silence)

    assert_receive {:barytherium, :client, {{:disconnected, %{reason: :timeout}}, _client}},
                   10_000

    assert [{"1", true}] = bodies(receive_messages(subscription, 1))
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

  # The frames that a plain connection gets for these bytes, until the broker closes it.
  defp raw(broker, text, connect \\ "accept-version:1.2") do
    {:ok, socket} =
      :gen_tcp.connect({127, 0, 0, 1}, TestBroker.port(broker), [:binary, active: false])

    frames = String.replace(text, "|", "\0")
    :ok = :gen_tcp.send(socket, "CONNECT\n#{connect}\n\n\0" <> frames)
    {:ok, frames, _state} = socket |> read(<<>>) |> Frame.parse_all()
    frames
  end

  defp read(socket, bytes) do
    case :gen_tcp.recv(socket, 0, 5_000) do
      {:ok, more} -> read(socket, bytes <> more)
      {:error, :closed} -> bytes
    end
  end

  @bye "DISCONNECT\nreceipt:bye\n\n|"

  test "frames that are written before a close are in order" do
    broker = broker()
    publish(broker, "/queue/a", for(n <- 1..6, do: "#{n}"))
    :ok = TestBroker.fault(broker, {:close, 5})
    frames = raw(broker, "SUBSCRIBE\nid:1\ndestination:/queue/a\nreceipt:s\n\n|")
    assert for(frame <- frames, do: frame.body) == ["", "1", "2", "3", "4"]

    sends = for n <- 1..3, do: "SEND\ndestination:/topic/a\nreceipt:#{n}\n\n|"
    receipts = for frame <- raw(broker, "#{sends}#{@bye}"), do: Frame.header(frame, "receipt-id")
    assert receipts == [nil, "1", "2", "3", "bye"]
  end

  test "strange frames are answered with ERROR, and the broker goes on" do
    broker = broker()
    send(broker, :stray)

    for header <- ["prefetch-count:abc", "prefetch-count:-1", "prefetch-count:", "ack:clientt"] do
      frames = raw(broker, "SUBSCRIBE\nid:1\ndestination:/queue/a\n#{header}\n\n|#{@bye}")
      assert [:connected, :error] = for(frame <- frames, do: frame.command)
    end

    assert [%Frame{command: :error} = error] = raw(broker, "", "accept-version:1.3")
    assert Frame.header(error, "message") =~ "1.0, 1.1, 1.2"
    assert [:connected, :receipt] = for(frame <- raw(broker, @bye, "host:h"), do: frame.command)
  end

  test "0 is no limit, and ActiveMQ has one of its own" do
    for {like, header, expected} <- [
          {nil, "prefetch-count:0", 1_001},
          {:rabbitmq, "activemq.prefetchSize:5", 1_001},
          {:activemq, "prefetch-count:5", 1_000}
        ] do
      {:ok, broker} = TestBroker.start_link(like: like)
      publish(broker, "/queue/a", for(n <- 1..1_001, do: "#{n}"))

      frames =
        raw(broker, "SUBSCRIBE\nid:1\nack:client\ndestination:/queue/a\n#{header}\n\n|#{@bye}")

      assert Enum.count(frames, &(&1.command == :message)) == expected
      GenServer.stop(broker)
    end
  end

  test "what these brokers have of their own" do
    {:ok, rabbitmq} = TestBroker.start_link(like: :rabbitmq)
    publish = "SEND\ndestination:/amq/queue/a\n\nhi|"
    subscribe = "SUBSCRIBE\nid:1\ndestination:/queue/a\n\n|"
    wrong = "ACK\nid:no\nreceipt:r\n\n|"
    frames = raw(rabbitmq, publish <> subscribe <> wrong <> @bye)
    assert [:connected, :message, :error, :receipt] = for(frame <- frames, do: frame.command)
    assert Frame.header(Enum.at(frames, 2), "receipt-id") == nil
    {:ok, activemq} = TestBroker.start_link(like: :activemq)
    assert [_connected, error, _receipt] = raw(activemq, wrong <> @bye)
    assert Frame.header(error, "receipt-id") == "r"
    # 1.0 has subscriptions without an id.
    assert [_, %Frame{command: :message, body: "x"} = message, _] =
             raw(
               broker(),
               "SEND\ndestination:/queue/a\n\nx|SUBSCRIBE\ndestination:/queue/a\n\n|#{@bye}",
               "host:h"
             )

    assert Frame.header(message, "subscription") == "/queue/a"
  end

  test "an acknowledgement that was not confirmed in time is not said to be, when it is asked for again" do
    broker = broker(like: :rabbitmq)
    {client, subscription} = subscribed(broker, "/queue/a", ack: :client)
    publish(broker, "/queue/a", ["1", "2"])
    [_one, two] = receive_messages(subscription, 2)
    :ok = TestBroker.fault(broker, {:delay, 500})
    assert {:error, %{reason: :timeout}} = Client.ack(client, two, receipt: true, timeout: 50)
    assert {:error, %{reason: :unconfirmed}} = Client.ack(client, two, receipt: true)
    # It was written for certain.
    assert TestBroker.await_acknowledgements(broker, "/queue/a") == :ok
  end

  test "a message that is refused as a dead letter too is gone" do
    broker = broker()
    {client, subscription} = subscribed(broker, "/queue/DLQ", ack: :client_individual)
    publish(broker, "/queue/DLQ", ["no"])
    :ok = Client.nack(client, receive_messages(subscription, 1))
    TestBroker.await_acknowledgements(broker, "/queue/DLQ")
    refute_receive {:barytherium, :messages, _again}, 50
  end

  test "what a topic's subscription leaves behind is lost, and not waited for" do
    broker = broker()
    {client, subscription} = subscribed(broker, "/topic/a", ack: :client_individual, prefetch: 1)
    publish(broker, "/topic/a", ["1", "2"])
    receive_messages(subscription, 1)
    :ok = Client.unsubscribe(client, subscription)
    {client, subscription} = subscribed(broker, "/topic/a", ack: :client_individual)
    publish(broker, "/topic/a", ["3"])
    :ok = Client.ack(client, receive_messages(subscription, 1))
    assert TestBroker.await_acknowledgements(broker, "/topic/a") == :ok
  end

  test "with a rate, a subscription that is made again gets no more" do
    broker = broker(rate: 100)
    again = for _ <- 1..5, do: "SUBSCRIBE\nid:1\ndestination:/topic/a\n\n|UNSUBSCRIBE\nid:1\n\n|"

    {:ok, socket} =
      :gen_tcp.connect({127, 0, 0, 1}, TestBroker.port(broker), [:binary, active: false])

    bytes =
      String.replace(
        "CONNECT\nhost:h\n\n|#{again}SUBSCRIBE\nid:1\ndestination:/topic/a\n\n|",
        "|",
        "\0"
      )

    :ok = :gen_tcp.send(socket, bytes)
    TestBroker.await_subscription(broker, "/topic/a")
    [connection] = :sys.get_state(broker).connections
    # Six ticks would come in the time of one.
    Process.sleep(100)
    assert %{fed: %{"1" => ref}} = :sys.get_state(connection)
    {:messages, waiting} = Process.info(connection, :messages)
    for {:tick, "1", other, _sent} <- waiting, do: assert(other == ref)
    :ok = :gen_tcp.close(socket)
  end

  test "what is written after a delay has ended stays behind what waits" do
    broker = broker()
    {_client, subscription} = subscribed(broker, "/topic/a")
    :ok = TestBroker.fault(broker, {:delay, 100})
    publish(broker, "/topic/a", ["1"])
    :ok = TestBroker.fault(broker, {:delay, 0})
    publish(broker, "/topic/a", ["2"])
    assert [{"1", _}, {"2", _}] = bodies(receive_messages(subscription, 2))
  end

  test "a connection whose client does not read can be closed" do
    broker = broker()

    {:ok, socket} =
      :gen_tcp.connect({127, 0, 0, 1}, TestBroker.port(broker), [
        :binary,
        active: false,
        recbuf: 1_000
      ])

    subscribe =
      String.replace("CONNECT\nhost:h\n\n|SUBSCRIBE\nid:1\ndestination:/queue/a\n\n|", "|", "\0")

    :ok = :gen_tcp.send(socket, subscribe)
    TestBroker.await_subscription(broker, "/queue/a")
    TestBroker.publish(broker, "/queue/a", :binary.copy("x", 20_000_000))
    [connection] = :sys.get_state(broker).connections
    monitor = Process.monitor(connection)
    :ok = TestBroker.fault(broker, :close)
    assert_receive {:DOWN, ^monitor, :process, ^connection, :killed}
  end

  test "whoever has waited in vain is forgotten, and so are old entries" do
    broker = broker()

    assert_raise ExUnit.AssertionError, fn ->
      TestBroker.assert_acked(broker, "/queue/a", "x", 1)
    end

    assert catch_exit(TestBroker.await_subscription(broker, "/queue/a", 1))
    eventually(fn -> :sys.get_state(broker).waiting == [] end)

    client = client(broker)
    {:ok, subscription} = Client.subscribe(client, "/queue/a", ack: :client_individual)
    many = for n <- 1..25_000, do: {"/queue/a", "#{n}"}
    spawn_link(fn -> Client.publish_many(client, many) end)
    acknowledge(client, subscription, 25_000)
    TestBroker.assert_acked(broker, "/queue/a", "25000", 5_000)

    sizes =
      for {_key, {entries, _last}} <- :sys.get_state(broker).journal, do: :queue.len(entries)

    assert Enum.all?(sizes, &(&1 < 20_000))
    assert %{waiting: empty, open: empty} = :sys.get_state(broker).session.queues
    assert empty == %{}
  end

  defp acknowledge(_client, _subscription, 0), do: :ok

  defp acknowledge(client, subscription, count) do
    assert_receive {:barytherium, :messages, {frames, ^subscription}}, 5_000
    :ok = Client.ack(client, frames)
    acknowledge(client, subscription, count - length(frames))
  end

  test "two assertions at once do not find the same message" do
    broker = broker()
    client = client(broker)

    find = fn ->
      TestBroker.assert_published(broker, "/queue/a", fn _any -> true end, 5_000).body
    end

    finding = for _ <- 1..2, do: Task.async(find)
    for body <- ["1", "2"], do: :ok = Client.publish(client, "/queue/a", body)
    assert finding |> Task.await_many() |> Enum.sort() == ["1", "2"]
  end

  test "mistakes in options and faults are told to whoever makes them" do
    for {opts, text} <- [
          {[like: :artemis], "like: is :rabbitmq or :activemq, not :artemis"},
          {[rate: "x"], "rate: is a number of messages"},
          {[heart_beat: 1_000], "heart_beat: is {milliseconds, milliseconds}"},
          {[body: 5], "body: is a binary"},
          {[replay: "a", speed: 0], "speed: is a number above 0, or :infinity"},
          {[replay: "a", from: ~N[2026-11-28 08:00:00]], "from: is a DateTime"},
          {[speed: 2], "speed: and from: are for replay:"},
          {[replay: "a", rate: 1], "rate: is not for a replay"}
        ] do
      error = assert_raise ArgumentError, fn -> TestBroker.start_link(opts) end
      assert error.message =~ text
    end

    broker = broker()

    for fault <- [
          :sillence,
          {:close, "3"},
          {:close, 0},
          {:delay, -1},
          {:refuse, :sned, "no"},
          {:error, 1}
        ],
        do:
          assert_raise(ArgumentError, ~r/no such fault/, fn -> TestBroker.fault(broker, fault) end)
  end
end
