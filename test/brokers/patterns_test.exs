# `guides/patterns.md`, and what it says, with every broker.
for kind <- [Barytherium.Brokers.RabbitMQ, Barytherium.Brokers.ActiveMQ] do
  defmodule Module.concat(kind, PatternsTest) do
    use Barytherium.BrokerCase, async: true, broker: kind

    import Barytherium.ClientCase, only: [receive_messages: 2]
    import Barytherium.ReceiverCase, only: [eventually: 2]

    alias Barytherium.{Client, Consumer, FaultProxy}

    @moduletag capture_log: true

    defmodule Replying do
      use Barytherium.Consumer

      @impl true
      def handle_message(frame, opts) do
        # The requester may have left.
        Consumer.reply(frame, "re:" <> frame.body, opts)
        {:ack, opts}
      end
    end

    defp url(port), do: "stomp://guest:guest@127.0.0.1:#{port}"

    defp client(port, opts \\ []), do: connected_client([url: url(port)] ++ opts)

    defp queue, do: "/queue/patterns#{System.unique_integer([:positive])}"

    defp replying(broker, opts) do
      queue = queue()
      start_supervised!({Replying, url: url(broker.port), subscribe: queue, init_arg: opts})
      queue
    end

    # Consumes what is there, and leaves it acknowledged.
    defp take(client, queue, count) do
      {:ok, subscription} = Client.subscribe(client, queue, ack: :auto)
      receive_messages(subscription, count)
    end

    # The examples of a section of the guide. Each broker has modules of its own.
    defp run_guide(section, broker, binding \\ []) do
      text = File.read!("guides/patterns.md")
      [_all, text] = Regex.run(~r/^## #{section}\n(.*?)(?=^## |\z)/ms, text)
      suffix = @broker_kind |> Module.split() |> List.last()

      for [_all, code] <- Regex.scan(~r/```elixir\n(.*?)```/s, text), reduce: binding do
        binding ->
          {_result, binding} =
            code
            |> with_alias()
            |> String.replace("61613", to_string(broker.port))
            |> String.replace(~s[Path.join(System.tmp_dir!(), "positions")], "spool")
            |> String.replace(~r/\b(Prices|Invoices|Deliveries)\b/, "\\1#{suffix}")
            |> Code.eval_string(binding)

          binding
      end
    end

    defp with_alias("alias " <> _rest = code), do: code
    defp with_alias(code), do: "alias Barytherium.Client\n" <> code

    test "the guide: requests", %{broker: broker} do
      binding = run_guide("Requests and replies", broker)
      assert binding[:reply].body == "1A23: 12.50"
      Supervisor.stop(binding[:prices])
      Client.close(binding[:client])
    end

    test "the guide: publishing without waiting", %{broker: broker} do
      directory = Barytherium.Directory.path()
      on_exit(fn -> File.rm_rf!(directory) end)
      client = client(broker.port)
      binding = run_guide("Publishing without waiting", broker, spool: directory)

      assert [%Frame{body: "1A23 at Watford"} | _] =
               frames = take(client, "/queue/positions", 1_001)

      assert List.last(frames).body == "1A23 at milepost 1000"
      Client.close(binding[:publisher])
    end

    test "the guide: attempts", %{broker: broker} do
      client = client(broker.port)
      binding = run_guide("Attempts, and dead letters", broker, client: client)
      assert [%Frame{body: "not a number"} = frame] = take(client, "/queue/invoices.failed", 1)
      assert header(frame, "original-destination") == "/queue/invoices"
      Supervisor.stop(binding[:invoices])
      assert nothing?(client, "/queue/invoices")
    end

    # A message behind what may be there comes first.
    defp nothing?(client, queue) do
      :ok = Client.publish(client, queue, "last")
      match?([%Frame{body: "last"}], take(client, queue, 1))
    end

    defmodule Failing do
      use Barytherium.Consumer

      @impl true
      def handle_message(frame, test) do
        send(test, {:tried, frame.body})
        raise "always"
      end
    end

    defp failing(broker, opts) do
      own = [url: url(broker.port), init_arg: self(), max_attempts: 2, retry_delay: {1, 1}]
      {:ok, consumer} = Failing.start_link(own ++ opts)
      consumer
    end

    # ActiveMQ keeps the dead letters; RabbitMQ discards them, if the queue does not say where they go.
    test "refused messages do not come again, and go where the broker puts them", %{
      broker: broker
    } do
      {queue, client} = {queue(), client(broker.port)}
      {:ok, dead} = Client.subscribe(client, dead(queue), ack: :auto)
      consumer = failing(broker, subscribe: {queue, headers: dead_letters(queue)})
      publish_to(consumer, client, queue, "bad")
      for _n <- 1..2, do: assert_receive({:tried, "bad"})
      assert %Frame{body: "bad"} = dead_letter(dead, queue)
      refute_received {:tried, "bad"}
      Supervisor.stop(consumer)
    end

    # ActiveMQ has one queue for those of all queues.
    defp dead_letter(subscription, queue) do
      assert_receive {:barytherium, :messages, {frames, ^subscription}}, 10_000
      own? = &(header(&1, "original-destination") in [nil, queue])
      Enum.find(frames, own?) || dead_letter(subscription, queue)
    end

    # To the queue that the consumer has declared, and not to one of another kind.
    defp publish_to(consumer, client, queue, body) do
      [subscriber] = Consumer.clients(consumer)
      eventually(fn -> Client.status(subscriber).state == :connected end, 500)
      eventually(fn -> Client.status(subscriber).unconfirmed == 0 end, 500)
      prefix = if @broker_kind == Barytherium.Brokers.RabbitMQ, do: "/amq", else: ""
      :ok = Client.publish(client, prefix <> queue, body)
    end

    if kind == Barytherium.Brokers.RabbitMQ do
      defp dead_letters("/queue/" <> name),
        do: [{"x-dead-letter-exchange", ""}, {"x-dead-letter-routing-key", name <> ".dead"}]

      defp dead(queue), do: queue <> ".dead"

      test "deliveries of a quorum queue are counted", %{broker: broker} do
        {queue, client} = {queue(), client(broker.port)}
        headers = [{"x-queue-type", "quorum"}, {"durable", "true"}, {"auto-delete", "false"}]

        # Three connections that end.
        for n <- 1..3 do
          taker = client(broker.port)
          {:ok, subscription} = Client.subscribe(taker, queue, headers: headers)
          if n == 1, do: :ok = Client.publish(client, "/amq" <> queue, "bad")
          assert [_bad] = receive_messages(subscription, 1)
          Client.close(taker)
        end

        {:ok, dead} = Client.subscribe(client, dead(queue), ack: :auto)
        opts = [subscribe: {queue, headers: headers}, on_exhausted: {:publish, dead(queue)}]
        consumer = failing(broker, opts)
        assert [frame] = receive_messages(dead, 1)
        refute header(frame, "x-delivery-count")
        # Not once more than they may be tried.
        refute_received {:tried, "bad"}
        Supervisor.stop(consumer)
      end
    else
      defp dead_letters(_queue), do: []
      defp dead(_queue), do: "/queue/ActiveMQ.DLQ"
    end

    test "the guide: durable subscriptions", %{broker: broker} do
      binding = run_guide("Durable subscriptions", broker, client: client(broker.port))
      assert binding[:late].body == "late"
      Client.close(binding[:subscriber])
    end

    test "a durable subscription that is deleted keeps nothing", %{broker: broker} do
      {topic, publisher} = {"/topic/#{System.unique_integer([:positive])}", client(broker.port)}
      client = client(broker.port, client_id: "deleting#{@broker_kind.name()}")
      opts = [durable: "name#{System.unique_integer([:positive])}"]

      for delete <- [false, true] do
        {:ok, subscription} = Client.subscribe(client, topic, opts)
        # One is not acknowledged, which is no obstacle.
        :ok = Client.publish(publisher, topic, "unacknowledged")
        assert [%Frame{body: "unacknowledged"}] = receive_messages(subscription, 1)
        assert Client.unsubscribe(client, subscription, delete: delete) == :ok
        :ok = Client.publish(publisher, topic, "away")
        {:ok, subscription} = Client.subscribe(client, topic, opts)
        :ok = Client.publish(publisher, topic, "last")
        kept = if delete, do: ["last"], else: ["unacknowledged", "away", "last"]
        frames = receive_messages(subscription, length(kept))
        assert Enum.sort(Enum.map(frames, & &1.body)) == Enum.sort(kept)
        :ok = Client.ack(client, frames, receipt: true)
        assert Client.unsubscribe(client, subscription, delete: true) == :ok
      end
    end

    test "the guide: batches", %{broker: broker} do
      client = client(broker.port)

      printed =
        ExUnit.CaptureIO.capture_io(fn ->
          binding = run_guide("Batches", broker, client: client)
          eventually(fn -> batches(binding[:deliveries]) == 2 end, 500)
          Supervisor.stop(binding[:deliveries])
        end)

      assert printed == "a batch of 100\na batch of 50\n"
      assert nothing?(client, "/queue/deliveries")
    end

    # One delay is counted for each.
    defp batches(consumer) do
      [subscriber] = Consumer.clients(consumer)
      [%{to_ack: to_ack}] = Client.feeds(subscriber)
      Enum.sum(for {_delay, count} <- to_ack, do: count)
    end

    test "10,000 requests at once, each with its own reply", %{broker: broker} do
      queue = replying(broker, receipt: false)
      client = client(broker.port)

      1..10_000
      |> Enum.map(fn n ->
        Task.async(fn ->
          assert {:ok, %{body: body}} = Client.request(client, queue, "#{n}", timeout: 60_000)
          assert body == "re:#{n}"
        end)
      end)
      |> Task.await_many(60_000)

      assert Client.status(client).unconfirmed == 0
    end

    test "a requester that has left harms nobody", %{broker: broker} do
      queue = queue()
      client = client(broker.port)
      asking = Task.async(fn -> Client.request(client, queue, "a", timeout: 20_000) end)
      server = client(broker.port)
      {:ok, subscription} = Client.subscribe(server, queue)
      assert [frame] = receive_messages(subscription, 1)
      Client.close(client, 50)
      assert {:error, %{reason: :unconfirmed}} = Task.await(asking)
      # The broker notices a moment later.
      eventually(fn -> left?(Client.reply(server, frame, "b")) end, 500)
      assert Client.ack(server, frame, receipt: true) == :ok
      assert %{state: :connected, connections: 1} = Client.status(server)
    end

    if kind == Barytherium.Brokers.RabbitMQ,
      do: defp(left?(result), do: result == :ok),
      else: defp(left?(result), do: match?({:error, %{reason: :refused}}, result))

    test "a connection that is cut in the middle of requests hangs nobody", %{broker: broker} do
      queue = replying(broker, [])
      {proxy, port} = FaultProxy.start!(broker.port)
      client = client(port)

      # In the middle of the replies.
      FaultProxy.set(proxy, {:reset_after, 5_000})

      asking =
        for n <- 1..200,
            do: Task.async(fn -> Client.request(client, queue, "#{n}", timeout: 10_000) end)

      results = Task.await_many(asking, 20_000)

      for {{kind, value}, n} <- Enum.with_index(results, 1) do
        if kind == :ok,
          do: assert(value.body == "re:#{n}"),
          else: assert(value.reason in [:unconfirmed, :disconnected])
      end

      assert Enum.any?(results, &match?({:ok, _reply}, &1))
      assert Enum.any?(results, &match?({:error, _error}, &1))
      assert {:ok, %{body: "re:z"}} = Client.request(client, queue, "z", wait: true)
    end
  end
end
