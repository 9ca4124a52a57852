# What consumers and clients promise, on real brokers.
for kind <- [Barytherium.Brokers.RabbitMQ, Barytherium.Brokers.ActiveMQ] do
  defmodule Module.concat([kind, ConsumerTest]) do
    use Barytherium.BrokerCase, async: true, broker: kind

    import Barytherium.ReceiverCase, only: [eventually: 1, eventually: 2]

    alias Barytherium.{Client, Consumer, FaultProxy}

    @moduletag capture_log: true

    # Raises for each body that begins with "poison", once. Then it tells the test.
    defmodule Fallible do
      use Barytherium.Consumer, backoff: {50, 500}

      @impl true
      def handle_message(%{body: body}, {test, seen}) do
        if String.starts_with?(body, "poison") and :ets.insert_new(seen, {body}),
          do: raise("poison")

        send(test, {:handled, body})
        {:ack, {test, seen}}
      end
    end

    defmodule FallibleBatches do
      use Barytherium.Consumer, backoff: {50, 500}

      @impl true
      def handle_batch(frames, {test, seen}) do
        for %{body: body} <- frames,
            String.starts_with?(body, "poison") and :ets.insert_new(seen, {body}),
            do: raise("poison")

        for %{body: body} <- frames, do: send(test, {:handled, body})
        {:ack, {test, seen}}
      end
    end

    defmodule Blocked do
      use Barytherium.Consumer, backoff: {50, 500}

      @impl true
      def handle_message(%{body: body}, test) do
        send(test, {:handling, self()})
        receive do: (:go -> send(self(), :go))
        send(test, {:handled, body})
        {:ack, test}
      end

      @impl true
      def handle_info(:go, test), do: {:ok, test}
    end

    setup %{broker: broker} do
      Process.flag(:trap_exit, true)
      url = "stomp://guest:guest@127.0.0.1:#{broker.port}"
      client = start_supervised!({Client, url: url, listener: self(), backoff: {50, 500}})
      seen = :ets.new(:seen, [:set, :public])

      %{
        url: url,
        client: client,
        seen: seen,
        name: "consumer-#{System.unique_integer([:positive])}"
      }
    end

    defp publish(client, destination, bodies, headers \\ []) do
      messages = for body <- bodies, do: {destination, body, headers}
      assert Client.publish_many(client, messages, wait: true) == :ok
    end

    defp handled(bodies), do: for(body <- bodies, do: assert_receive({:handled, ^body}, 20_000))

    for ack <- [:client_individual, :client], headers <- [[], [{"persistent", "true"}]] do
      test "a message whose callback raises is not lost (#{ack}, #{inspect(headers)})",
           context do
        destination = "/queue/#{context.name}"
        bodies = ["1", "poison", "2", "3"]
        publish(context.client, destination, bodies, unquote(headers))
        subscribe = {destination, ack: unquote(ack)}
        opts = [url: context.url, init_arg: {self(), context.seen}, subscribe: subscribe]
        {:ok, consumer} = Fallible.start_link(opts)
        handled(["1", "2", "3"])
        # Where it was left unacknowledged it comes again on the next connection.
        Supervisor.stop(consumer, :shutdown)
        {:ok, consumer} = Fallible.start_link(opts)
        handled(["poison"])
        Supervisor.stop(consumer, :shutdown)
      end
    end

    test "of a batch whose callback raises nothing is lost", context do
      destination = "/queue/#{context.name}"
      bodies = for(n <- 1..199, do: "#{n}") ++ ["poison"]
      publish(context.client, destination, bodies)
      opts = [url: context.url, init_arg: {self(), context.seen}, subscribe: destination]
      {:ok, consumer} = FallibleBatches.start_link(opts)
      eventually(fn -> :ets.member(context.seen, "poison") end, 1_000)
      Process.sleep(500)
      Supervisor.stop(consumer, :shutdown)
      {:ok, consumer} = FallibleBatches.start_link(opts)
      handled(bodies)
      Supervisor.stop(consumer, :shutdown)
    end

    test "messages of a topic that have arrived are handled although their connection has ended",
         context do
      {proxy, port} = FaultProxy.start!(context.broker.port)
      destination = "/topic/#{context.name}"
      url = "stomp://guest:guest@127.0.0.1:#{port}"
      {:ok, consumer} = Blocked.start_link(url: url, init_arg: self(), subscribe: destination)
      [client] = Consumer.clients(consumer)
      eventually(fn -> match?(%{frames: 2}, Client.stats(client)) end, 1_000)
      bodies = for n <- 1..50, do: "#{n}"
      publish(context.client, destination, bodies)
      assert_receive {:handling, worker}
      eventually(fn -> Client.stats(client).frames == 52 end)
      FaultProxy.set(proxy, {:reset_after, 0})
      publish(context.client, destination, ["reset"])
      eventually(fn -> Client.status(client).connections == 2 end, 1_000)
      send(worker, :go)
      handled(bodies)
      Supervisor.stop(consumer, :shutdown)
    end

    test "a subscription that ends does not disturb the others of its client", context do
      %{client: client, name: name} = context
      destinations = for n <- 1..5, do: "/queue/#{name}-#{n}"

      for destination <- destinations do
        publish(client, destination, for(n <- 1..20, do: "#{n}"))
        {:ok, subscription} = Client.subscribe(client, destination, prefetch: 10)
        assert_receive {:barytherium, :messages, {[_ | _] = frames, _subscription}}
        # The others of an earlier subscription may have come.
        assert Client.ack(client, frames) in [:ok, {:error, %Barytherium.Error{reason: :stale}}]
        assert Client.unsubscribe(client, subscription) == :ok
        assert Client.publish(client, destination, "after") == :ok
      end

      assert %{connections: 1, state: :connected} = Client.status(client)
    end

    for version <- ["1.0", "1.1", "1.2"], ack <- [:client_individual, :client] do
      test "what was not acknowledged reaches another subscriber (#{version}, #{ack})", context do
        %{name: name, url: url} = context
        client = start_supervised!({Client, url: url, versions: [unquote(version)]}, id: :one)
        destination = "/queue/#{name}"
        publish(client, destination, for(n <- 1..4, do: "#{n}"))
        {:ok, subscription} = Client.subscribe(client, destination, ack: unquote(ack))
        [message | _] = messages(client, 4)
        assert Client.ack(client, message) == :ok
        assert Client.unsubscribe(client, subscription) == :ok
        assert Client.ack(client, message) == {:error, %Barytherium.Error{reason: :stale}}
        other = start_supervised!({Client, url: url}, id: :other)
        :ok = Client.publish(other, destination, "5", wait: true)
        {:ok, _subscription} = Client.subscribe(other, destination, ack: :auto)
        assert Enum.sort(received(other, 4)) == ["2", "3", "4", "5"]
        assert %{connections: 1} = Client.status(client)
      end
    end

    test "what subscribers that end have not acknowledged reaches the next one", context do
      %{client: client, name: name, url: url} = context
      destination = "/queue/#{name}"
      publish(client, destination, for(n <- 1..500, do: "#{n}"))

      for _subscriber <- 1..5 do
        subscriber = spawn(fn -> Process.sleep(:infinity) end)
        {:ok, _subscription} = Client.subscribe(client, destination, to: subscriber)

        eventually(fn ->
          Process.info(subscriber, :message_queue_len) > {:message_queue_len, 0}
        end)

        Process.exit(subscriber, :kill)
        eventually(fn -> Client.status(client).subscriptions == 0 end, 1_000)
      end

      other = start_supervised!({Client, url: url}, id: :other)
      :ok = Client.publish(other, destination, "501", wait: true)
      {:ok, _subscription} = Client.subscribe(other, destination, ack: :auto)
      all = for n <- 1..501, do: "#{n}"
      assert Enum.sort(received(other, 501)) == Enum.sort(all)
      assert %{connections: 1} = Client.status(client)
    end

    # Messages are on their way then.
    test "a subscription ends under load, and nothing is lost or kept", context do
      %{client: client, name: name, url: url} = context
      destination = "/queue/#{name}"
      publisher = start_supervised!({Client, url: url}, id: :publisher)
      bodies = for n <- 1..3_000, do: "#{n}"
      publishing = Task.async(fn -> publish(publisher, destination, bodies) end)

      acknowledged =
        for _round <- 1..10, reduce: [] do
          acknowledged ->
            {:ok, subscription} = Client.subscribe(client, destination, prefetch: 20)
            messages = some(client)
            assert Client.ack(client, messages) == :ok
            acknowledged = for(message <- messages, do: message.body) ++ acknowledged
            assert Client.unsubscribe(client, subscription) == :ok
            flush()
            acknowledged
        end

      Task.await(publishing, 60_000)
      other = start_supervised!({Client, url: url}, id: :other)
      :ok = Client.publish(other, destination, "last", wait: true)
      {:ok, _subscription} = Client.subscribe(other, destination, ack: :auto)
      left = ["last" | bodies] -- acknowledged
      assert Enum.sort(received(other, length(left))) == Enum.sort(left)
      assert %{connections: 1} = Client.status(client)
    end

    test "a subscription ends while single messages arrive, and nothing is kept", context do
      %{client: client, name: name, url: url} = context
      destination = "/queue/#{name}"
      publisher = start_supervised!({Client, url: url}, id: :publisher)
      :ok = Client.publish(publisher, destination, "0", wait: true)

      for n <- 1..100 do
        {:ok, subscription} = Client.subscribe(client, destination)
        ending = Task.async(fn -> Client.unsubscribe(client, subscription) end)
        for _step <- 1..:rand.uniform(200), do: :erlang.yield()
        :ok = Client.publish(publisher, destination, "#{n}")
        assert Task.await(ending) == :ok
      end

      flush()
      other = start_supervised!({Client, url: url}, id: :other)
      {:ok, _subscription} = Client.subscribe(other, destination, ack: :auto, prefetch: 1)
      assert Enum.sort(received(other, 101)) == Enum.sort(for n <- 0..100, do: "#{n}")
      assert %{connections: 1} = Client.status(client)
    end

    test "what times out goes on, and gives everything back", context do
      %{client: client, name: name, url: url} = context
      destination = "/queue/#{name}"
      bodies = for n <- 1..20, do: "#{n}"
      publish(client, destination, bodies)

      for n <- 1..50 do
        with {:ok, subscription} <- Client.subscribe(client, destination, timeout: rem(n, 3)),
             do: Client.unsubscribe(client, subscription, rem(n, 2))
      end

      eventually(fn -> Client.status(client).unconfirmed == 0 end, 1_000)
      flush()
      other = start_supervised!({Client, url: url}, id: :other)
      {:ok, _subscription} = Client.subscribe(other, destination, ack: :auto)
      assert Enum.sort(received(other, 20)) == Enum.sort(bodies)
      assert %{connections: 1} = Client.status(client)
    end

    test "a transaction is over when the subscription ends whose messages it acknowledges",
         context do
      %{client: client, name: name, url: url} = context
      destination = "/queue/#{name}"
      publish(client, destination, ["1"])
      {:ok, subscription} = Client.subscribe(client, destination)
      [message] = messages(client, 1)

      result =
        Client.transaction(client, fn transaction ->
          :ok = Client.publish(transaction, destination <> "-out", "out")
          :ok = Client.ack(transaction, message)
          assert Client.unsubscribe(client, subscription) == :ok
        end)

      if @broker_kind == Barytherium.Brokers.RabbitMQ,
        do: assert(result == {:error, %Barytherium.Error{reason: :transaction_over}})

      # ActiveMQ takes the acknowledgement of a message that it has given to others.
      assert Client.publish(client, destination <> "-out", "next") == :ok

      if @broker_kind == Barytherium.Brokers.RabbitMQ do
        other = start_supervised!({Client, url: url}, id: :other)
        {:ok, _subscription} = Client.subscribe(other, destination)
        assert received(other, 1) == ["1"]
        assert %{connections: 1} = Client.status(client)
      end
    end

    test "prefetch: :infinity has no limit, whatever other subscriptions have", context do
      %{client: client, name: name} = context
      publish(client, "/queue/#{name}", for(n <- 1..5, do: "#{n}"))
      {:ok, other} = Client.subscribe(client, "/queue/#{name}-other", prefetch: 1)
      assert Client.unsubscribe(client, other) == :ok
      {:ok, _subscription} = Client.subscribe(client, "/queue/#{name}", prefetch: :infinity)
      assert received(client, 5) == ["1", "2", "3", "4", "5"]
    end

    test "a cumulative acknowledgement covers the earlier messages of its subscription",
         context do
      %{client: client, name: name, url: url} = context
      [first, second] = for n <- 1..2, do: "/queue/#{name}-#{n}"

      for destination <- [first, second] do
        publish(client, destination, ["1", "2", "3"])
        {:ok, _subscription} = Client.subscribe(client, destination, ack: :client)
        messages = messages(client, 3)
        if destination == second, do: assert(Client.ack(client, Enum.at(messages, 1)) == :ok)
      end

      Client.close(client)
      other = start_supervised!({Client, url: url}, id: :other)
      publish(other, second, ["4"])
      {:ok, _subscription} = Client.subscribe(other, second)
      assert received(other, 2) == ["3", "4"]
      publish(other, first, ["4"])
      {:ok, _subscription} = Client.subscribe(other, first)
      assert received(other, 4) == ["1", "2", "3", "4"]
    end

    test "a transaction with a cumulative acknowledgement can be repeated", context do
      %{client: client, name: name, url: url} = context
      publish(client, "/queue/#{name}", ["1", "2", "3"])
      {:ok, _subscription} = Client.subscribe(client, "/queue/#{name}", ack: :client)
      [_first, second, _third] = messages(client, 3)

      acknowledge = fn transaction ->
        :ok = Client.ack(transaction, second)
        :ok = Client.ack(transaction, second)
      end

      abort = fn transaction -> acknowledge.(transaction) && throw(:abort) end
      assert catch_throw(Client.transaction(client, abort)) == :abort
      assert Client.transaction(client, acknowledge) == {:ok, :ok}
      Client.close(client)
      other = start_supervised!({Client, url: url}, id: :other)
      {:ok, _subscription} = Client.subscribe(other, "/queue/#{name}")
      assert received(other, 1) == ["3"]
    end

    defp some(client) do
      assert_receive {:barytherium, :messages, {[_ | _] = frames, {^client, _number}}}, 10_000
      frames
    end

    defp flush do
      receive do
        {:barytherium, :messages, _messages} -> flush()
      after
        0 -> :ok
      end
    end

    defp messages(_client, 0), do: []

    defp messages(client, count) do
      frames = some(client)
      frames ++ messages(client, count - length(frames))
    end

    defp received(client, count), do: for(frame <- messages(client, count), do: frame.body)

    test "a transaction with a message and an acknowledgement does both or neither", context do
      %{client: client, name: name} = context
      publish(client, "/queue/#{name}", ["in"])
      {:ok, _subscription} = Client.subscribe(client, "/queue/#{name}")
      assert_receive {:barytherium, :messages, {[message], _subscription}}

      forward = fn transaction ->
        :ok = Client.publish(transaction, "/queue/#{name}-out", "out")
        :ok = Client.ack(transaction, message)
        transaction
      end

      assert_raise RuntimeError, fn ->
        Client.transaction(client, fn transaction -> forward.(transaction) && raise "no" end)
      end

      assert {:ok, _transaction} = Client.transaction(client, forward)
      {:ok, _subscription} = Client.subscribe(client, "/queue/#{name}-out", ack: :auto)
      assert received(client, 1) == ["out"]
    end

    test "a client comes back soon after its connection was killed, with its client-id",
         context do
      opts = [url: context.url, headers: [{"client-id", context.name}], backoff: {50, 1_000}]
      client = start_supervised!({Client, opts}, id: :named)
      assert Client.publish(client, "/queue/#{context.name}", "", wait: true) == :ok
      {:links, links} = Process.info(client, :links)
      network = Client.status(client).network
      assert network in links
      Process.exit(network, :kill)
      eventually(fn -> Client.status(client).connections == 2 end, 1_000)
      opts = [wait: true, timeout: 10_000]
      assert Client.publish(client, "/queue/#{context.name}", "", opts) == :ok
    end

    if kind == Barytherium.Brokers.RabbitMQ do
      test "the answer in a temporary queue goes to the listener", %{client: client, name: name} do
        destination = "/queue/#{name}"
        {:ok, _subscription} = Client.subscribe(client, destination, ack: :auto)
        headers = [{"reply-to", "/temp-queue/answers"}]

        assert Client.publish(client, destination, "question", headers: headers, wait: true) ==
                 :ok

        assert_receive {:barytherium, :messages, {[question], _subscription}}
        assert Client.publish(client, header(question, "reply-to"), "answer") == :ok
        assert_receive {:barytherium, :client, {{:message, answer}, ^client}}
        assert answer.body == "answer"
      end
    end
  end
end
