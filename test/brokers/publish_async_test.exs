# `Barytherium.Client.publish_async/4` with every broker.
for kind <- [Barytherium.Brokers.RabbitMQ, Barytherium.Brokers.ActiveMQ] do
  defmodule Module.concat(kind, PublishAsyncTest) do
    use Barytherium.BrokerCase, async: true, broker: kind

    import Barytherium.ReceiverCase, only: [eventually: 2]

    alias Barytherium.{Client, Directory, Error, FaultProxy}

    @moduletag capture_log: true

    # RabbitMQ ends the connection, and does not say which message it was. ActiveMQ names it.
    @refused if kind == Barytherium.Brokers.RabbitMQ,
               do: "/exchange/none/a",
               else: "/remote-temp-queue/ID:none:1:1"

    defp url(port), do: "stomp://guest:guest@127.0.0.1:#{port}"

    defp client(port, opts \\ []),
      do: connected_client([url: url(port), backoff: {20, 50}] ++ opts)

    # A queue, and a subscription of this process to it.
    defp subscribed(broker) do
      queue = "/queue/async#{System.unique_integer([:positive])}"
      {:ok, subscription} = Client.subscribe(client(broker.port), queue, ack: :auto)
      {queue, subscription}
    end

    # Numbers up to `last`, some of them again.
    defp numbers(subscription, last, numbers \\ []) do
      assert_receive {:barytherium, :messages, {frames, ^subscription}}, 20_000
      numbers = Enum.reduce(frames, numbers, &[String.to_integer(&1.body) | &2])
      if last in numbers, do: Enum.reverse(numbers), else: numbers(subscription, last, numbers)
    end

    test "many messages are confirmed, in order", %{broker: broker} do
      {queue, subscription} = subscribed(broker)
      client = client(broker.port)

      references =
        for n <- 1..2_000 do
          {:ok, reference} = Client.publish_async(client, queue, "#{n}")
          reference
        end

      {:ok, list} = Client.publish_many_async(client, for(n <- 2_001..4_000, do: {queue, "#{n}"}))
      assert Client.flush(client, 20_000) == :ok

      for reference <- [list | references],
          do: assert_received({:barytherium, :published, {^reference, :ok}})

      assert numbers(subscription, 4_000) == Enum.to_list(1..4_000)
    end

    for where <- [:memory, :disk] do
      test "what was accepted survives connections that break (#{where})", %{broker: broker} do
        directory = Directory.path()
        on_exit(fn -> File.rm_rf!(directory) end)
        {queue, subscription} = subscribed(broker)
        {proxy, port} = FaultProxy.start!(broker.port)
        spool = if unquote(where) == :memory, do: :memory, else: directory
        client = client(port, spool: spool, publish_window: 200_000)

        breaking = spawn_link(fn -> break(proxy) end)

        for list <- Enum.chunk_every(1..20_000, 50) do
          messages = for n <- list, do: {queue, "#{n}"}
          # Of the results there would be more in the mailbox than `high_water_mark` allows.
          {:ok, _reference} =
            Client.publish_many_async(client, messages, to: :nobody, timeout: 20_000)
        end

        eventually(fn -> Client.status(client).connections > 3 end, 1_000)
        Process.unlink(breaking)
        Process.exit(breaking, :kill)
        assert Client.flush(client, 30_000) == :ok
        numbers = numbers(subscription, 20_000)
        # Each at least once. The first time they come in order.
        assert Enum.uniq(numbers) == Enum.to_list(1..20_000)
      end
    end

    defp break(proxy) do
      FaultProxy.set(proxy, {:reset_after, 3_000})
      Process.sleep(300)
      break(proxy)
    end

    test "a message that the broker refuses does not hold up the others", %{broker: broker} do
      {queue, subscription} = subscribed(broker)
      client = client(broker.port, spool: :memory)
      messages = for n <- 1..20, do: {if(n == 10, do: @refused, else: queue), "#{n}"}
      {:ok, reference} = Client.publish_many_async(client, messages)
      assert_receive {:barytherium, :published, {^reference, result}}, 30_000
      assert {:error, %Error{reason: :refused}, [9]} = result
      assert Enum.uniq(numbers(subscription, 20)) == Enum.to_list(1..20) -- [10]
    end
  end
end
