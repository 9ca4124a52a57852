# `Barytherium.Client` and `Barytherium.Consumer` with every broker.
for kind <- [Barytherium.Brokers.RabbitMQ, Barytherium.Brokers.ActiveMQ] do
  defmodule Module.concat(kind, ClientTest) do
    use Barytherium.BrokerCase, async: true, broker: kind

    import Barytherium.ReceiverCase, only: [eventually: 2]

    alias Barytherium.{Broker, Client, Consumer, FaultProxy}

    @moduletag capture_log: true

    defmodule Handler do
      use Barytherium.Consumer

      @impl true
      def handle_message(frame, {test, result} = state) do
        send(test, {:handled, frame, self()})
        {result, state}
      end

      @impl true
      def handle_connected(info, {test, _result} = state) do
        send(test, {:connected, info.client})
        {:ok, state}
      end

      @impl true
      def handle_disconnected(reason, {test, _result} = state) do
        send(test, {:disconnected, reason})
        {:ok, state}
      end

      @impl true
      def handle_error(frame, {test, _result} = state) do
        send(test, {:error, frame})
        {:ok, state}
      end
    end

    defp url(%{port: port}, userinfo \\ "guest:guest"),
      do: "stomp://#{userinfo}@127.0.0.1:#{port}"

    defp opts(broker), do: [urls: [url(broker)], backoff: {50, 200}]

    defp publisher(broker, opts \\ []) do
      client = start_supervised!({Client, Keyword.merge(opts(broker), opts)}, id: make_ref())
      eventually(fn -> Client.status(client).state == :connected end, 1_000)
      client
    end

    defp consumer(broker, subscribe, result \\ :ack, opts \\ []) do
      own = [subscribe: subscribe, init_arg: {self(), result}]
      {:ok, consumer} = Handler.start_link(own ++ Keyword.merge(opts(broker), opts))
      assert_receive {:connected, client}, 10_000
      # The receipts of the subscriptions have come.
      eventually(fn -> Client.status(client).unconfirmed == 0 end, 1_000)
      consumer
    end

    defp queue, do: "/queue/#{System.unique_integer([:positive])}"

    defp handled(count) do
      for _n <- 1..count//1 do
        assert_receive {:handled, frame, _pid}, 20_000
        frame
      end
    end

    defp bodies(frames), do: Enum.map(frames, & &1.body)
    defp numbers(range), do: Enum.map(range, &to_string/1)

    test "all messages that were confirmed arrive in order, once", %{broker: broker} do
      queue = queue()
      publisher = publisher(broker)
      assert Client.publish_many(publisher, for(n <- numbers(1..1_000), do: {queue, n})) == :ok
      consumer = consumer(broker, queue)
      assert bodies(handled(1_000)) == numbers(1..1_000)
      Supervisor.stop(consumer)
      # Nothing was left to be delivered again.
      consumer = consumer(broker, queue)
      refute_receive {:handled, _frame, _pid}, 200
      Supervisor.stop(consumer)
    end

    test "several connections share the messages of a queue", %{broker: broker} do
      queue = queue()
      subscribe = {queue, prefetch: 10}
      consumer = consumer(broker, subscribe, :ack, concurrency: 3)
      for _more <- 1..2, do: assert_receive({:connected, _client}, 10_000)
      publisher = publisher(broker)
      assert Client.publish_many(publisher, for(n <- numbers(1..300), do: {queue, n})) == :ok
      all = for _n <- 1..300, do: assert_receive({:handled, _frame, _pid}, 20_000)

      assert all |> Enum.map(fn {_, frame, _} -> frame.body end) |> Enum.sort() ==
               Enum.sort(numbers(1..300))

      assert all |> Enum.uniq_by(fn {_, _, pid} -> pid end) |> length() == 3
      Supervisor.stop(consumer)
    end

    test "the broker sends no more than prefetch allows", %{broker: broker} do
      queue = queue()
      consumer = consumer(broker, {queue, prefetch: 3}, :noreply)
      [client] = Consumer.clients(consumer)
      publisher = publisher(broker)
      assert Client.publish_many(publisher, for(n <- numbers(1..10), do: {queue, n})) == :ok
      frames = handled(3)
      refute_receive {:handled, _frame, _pid}, 200
      assert Client.ack(client, frames) == :ok
      assert bodies(handled(3)) == numbers(4..6)
      Supervisor.stop(consumer)
    end

    test "a message that is refused disturbs no others", %{broker: broker} do
      queue = queue()
      consumer = consumer(broker, queue, :nack, nack_headers: [{"requeue", "false"}])
      publisher = publisher(broker)
      for n <- numbers(1..3), do: assert(Client.publish(publisher, queue, n) == :ok)
      assert bodies(handled(3)) == numbers(1..3)
      Supervisor.stop(consumer)
      refute_received {:disconnected, _reason}
    end

    test "a transaction moves messages, or not", %{broker: broker} do
      {from, to} = {queue(), queue()}
      client = publisher(broker)
      {:ok, _subscription} = Client.subscribe(client, from)
      :ok = Client.publish(client, from, "x")
      assert_receive {:barytherium, :messages, {[message], _subscription}}, 10_000
      consumer(broker, to)

      move = fn transaction ->
        :ok = Client.publish(transaction, to, "y")
        :ok = Client.ack(transaction, message)
      end

      assert_raise RuntimeError, fn ->
        Client.transaction(client, fn transaction ->
          move.(transaction)
          raise "no"
        end)
      end

      refute_receive {:handled, _frame, _pid}, 200
      assert Client.transaction(client, move) == {:ok, :ok}
      assert bodies(handled(1)) == ["y"]
    end

    test "a durable subscription keeps messages while nobody is there", %{broker: broker} do
      topic = "/topic/#{System.unique_integer([:positive])}"
      opts = [headers: [{"client-id", "barytherium"}]]
      subscribe = {topic, durable: "durable-#{System.unique_integer([:positive])}"}
      publisher = publisher(broker)

      for body <- ["1", "2"] do
        consumer = consumer(broker, subscribe, :ack, opts)
        if body == "2", do: assert(bodies(handled(1)) == ["between"])
        assert Client.publish(publisher, topic, body) == :ok
        assert bodies(handled(1)) == [body]
        Supervisor.stop(consumer)
        assert Client.publish(publisher, topic, "between") == :ok
      end
    end

    test "every version of STOMP works", %{broker: broker} do
      for version <- ["1.0", "1.1", "1.2"] do
        queue = queue()
        consumer = consumer(broker, {queue, ack: :client}, :ack, versions: [version])
        [client] = Consumer.clients(consumer)
        assert Client.status(client).version == version
        publisher = publisher(broker, versions: [version])
        for n <- numbers(1..3), do: assert(Client.publish(publisher, queue, n) == :ok)
        assert bodies(handled(3)) == numbers(1..3)
        Supervisor.stop(consumer)
        consumer = consumer(broker, queue)
        refute_receive {:handled, _frame, _pid}, 100
        Supervisor.stop(consumer)
      end
    end

    # ActiveMQ takes any destination, and RabbitMQ any selector.
    @refused {"/nowhere/x", [headers: [{"selector", "(("}]]}

    test "a broker is reached with TLS, verified, and with a client certificate", %{
      broker: broker
    } do
      url = "stomp+ssl://guest:guest@localhost:#{broker.tls.port}"
      own = [cacertfile: broker.tls.cacertfile]
      ssl = Keyword.take(broker.tls.client, [:certfile, :keyfile])
      queue = queue()
      publisher = publisher(broker, urls: [{url, own}], ssl: ssl)
      assert Client.stats(publisher).tls == :native
      consumer(broker, queue, :ack, urls: [{url, own}], ssl: ssl)
      assert Client.publish(publisher, queue, "x") == :ok
      assert bodies(handled(1)) == ["x"]
    end

    test "a subscription that the broker refuses is told", %{broker: broker} do
      {destination, opts} = @refused
      client = publisher(broker)

      assert {:error, %Barytherium.Error{reason: :refused}} =
               Client.subscribe(client, destination, opts)

      own = [subscribe: @refused, init_arg: {self(), :ack}]
      {:ok, consumer} = Handler.start_link(own ++ opts(broker))
      assert_receive {:error, %Frame{command: :error}}, 10_000

      # ActiveMQ says what it refuses, so that the connection goes on.
      if @broker_kind == Barytherium.Brokers.RabbitMQ do
        assert_receive {:disconnected, %Barytherium.Error{reason: :refused}}, 10_000
      else
        [client] = Barytherium.Consumer.clients(consumer)
        assert %{state: :connected, connections: 1} = Client.status(client)
      end
    end

    test "stopping a consumer in the middle loses nothing", %{broker: broker} do
      queue = queue()
      publisher = publisher(broker)
      assert Client.publish_many(publisher, for(n <- numbers(1..5_000), do: {queue, n})) == :ok
      consumer = consumer(broker, queue)
      handled(100)
      Supervisor.stop(consumer)
      before = drain_mailbox()
      consumer(broker, queue)
      rest = handled(4_900 - length(before))

      assert bodies(rest) |> Enum.sort() ==
               Enum.sort(numbers(1..5_000) -- (numbers(1..100) ++ bodies(before)))
    end

    defp drain_mailbox do
      receive do
        {:handled, frame, _pid} -> [frame | drain_mailbox()]
      after
        0 -> []
      end
    end

    test "a broker that freezes, or resets the connection, is left and come back to", %{
      broker: broker
    } do
      {proxy, port} = FaultProxy.start!(broker.port)
      queue = queue()

      own = [
        url: url(%{port: port}),
        heart_beat: {0, 1_000},
        subscribe: queue,
        init_arg: {self(), :ack}
      ]

      {:ok, consumer} = Handler.start_link([backoff: {50, 200}] ++ own)
      assert_receive {:connected, _client}, 10_000
      FaultProxy.set(proxy, :stall)
      assert_receive {:disconnected, %Barytherium.Error{reason: :timeout}}, 10_000
      Supervisor.stop(consumer)
    end

    test "a broker that is killed and comes back has its consumers and publishers back" do
      broker = Broker.start!(unquote(kind))
      on_exit(fn -> Broker.stop(broker) end)
      queue = queue()
      consumer(broker, queue)
      publisher = publisher(broker)
      # It may be killed before it has read the acknowledgement, and must not bring it again then.
      assert Client.publish(publisher, queue, "before", persistent: false) == :ok
      assert bodies(handled(1)) == ["before"]
      Broker.kill(broker)
      assert_receive {:disconnected, %Barytherium.Error{reason: :closed}}, 10_000
      assert_receive {:disconnected, %Barytherium.Error{reason: :econnrefused}}, 10_000

      assert Client.publish(publisher, queue, "") ==
               {:error, %Barytherium.Error{reason: :disconnected}}

      broker = Broker.start_again!(broker)
      on_exit(fn -> Broker.stop(broker) end)
      assert_receive {:connected, _client}, 20_000
      assert Client.publish(publisher, queue, "after", wait: true) == :ok
      assert bodies(handled(1)) == ["after"]
    end

    test "acknowledgements with receipts are read before the connection ends", %{broker: broker} do
      client = publisher(broker)
      queue = queue()
      {:ok, _subscription} = Client.subscribe(client, queue, ack: :client_individual)
      for body <- ~w(1 2 3), do: :ok = Client.publish(client, queue, body)
      messages = received(3)
      assert Client.ack(client, Enum.take(messages, 2), receipt: true) == :ok
      Process.exit(client, :kill)

      {:ok, subscription} = Client.subscribe(publisher(broker), queue, ack: :auto)
      assert_receive {:barytherium, :messages, {[%Frame{body: "3"}], ^subscription}}, 10_000
      refute_receive {:barytherium, :messages, _more}, 200
    end

    defp received(0), do: []

    defp received(count) do
      assert_receive {:barytherium, :messages, {frames, _subscription}}, 10_000
      frames ++ received(count - length(frames))
    end

    if kind == Barytherium.Brokers.ActiveMQ do
      test "JMS clients get a text without content-length, and bytes with it", %{broker: broker} do
        client = publisher(broker)
        "/queue/" <> name = queue = queue()

        for {body, opts} <- [
              {"grüß", [content_length: false]},
              {"grüß", []},
              {<<0, 255>>, []},
              {"typed", [headers: [{"amq-msg-type", "text"}]]},
              {"typed", [content_length: false, headers: [{"amq-msg-type", "bytes"}]]}
            ],
            do: assert(Client.publish(client, queue, body, opts) == :ok)

        assert Client.publish_many(client, [{queue, "many"}], content_length: false) == :ok

        assert @broker_kind.jms_messages(broker, name, 6) ==
                 ["text grüß", "bytes 6", "bytes 2", "text typed", "bytes 5", "text many"]
      end
    end
  end
end
