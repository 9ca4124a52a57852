# `mix barytherium.tail` on a queue: what it shows, and what it does to the messages.
for kind <- [Barytherium.Brokers.RabbitMQ, Barytherium.Brokers.ActiveMQ] do
  defmodule Module.concat([kind, TailTest]) do
    use Barytherium.BrokerCase, async: false, broker: kind

    import ExUnit.CaptureIO

    alias Barytherium.{Client, Tail}
    alias Barytherium.Tail.Terminal

    @moduletag capture_log: true

    setup %{broker: broker} do
      url = "stomp://guest:guest@127.0.0.1:#{broker.port}"
      client = start_supervised!({Client, url: url})
      :ok = Client.publish(client, "/topic/nobody", "it is connected", wait: true)
      %{url: url, client: client}
    end

    defp tail(args) do
      run = fn -> Tail.run(args, "tail", %Terminal{live: false, colors: false}) end
      {{0, stdout}, stderr} = with_io(:stderr, fn -> with_io(run) end)
      {stdout, stderr}
    end

    defp bodies(stdout), do: for([_all, body] <- Regex.scan(~r/"body":"(\w+)"/, stdout), do: body)

    # The messages in a queue, which are taken from it.
    defp drain(client, queue, headers, count) do
      {:ok, subscription} = Client.subscribe(client, queue, ack: :auto, headers: headers)
      frames = take(count)
      :ok = Client.unsubscribe(client, subscription)
      frames
    end

    defp take(count) when count <= 0, do: []

    defp take(count) do
      assert_receive {:barytherium, :messages, {frames, _subscription}}, 10_000
      frames ++ take(count - length(frames))
    end

    if kind == Barytherium.Brokers.RabbitMQ do
      @quorum [{"x-queue-type", "quorum"}, {"durable", "true"}, {"auto-delete", "false"}]

      test "a queue's messages are delivered no more than they are shown", context do
        %{client: client, url: url} = context
        queue = "/queue/quorum"
        {:ok, subscription} = Client.subscribe(client, queue, headers: @quorum, ack: :auto)
        :ok = Client.unsubscribe(client, subscription)
        :ok = Client.publish_many(client, for(n <- 1..30, do: {queue, "m#{n}"}))
        headers = Enum.flat_map(@quorum, fn {name, value} -> ["--header", "#{name}:#{value}"] end)

        for _run <- 1..3 do
          {stdout, stderr} = tail([url <> queue, "--count", "2", "--format", "json" | headers])
          assert length(bodies(stdout)) == 2
          assert stderr =~ "Up to 2 messages of /queue/quorum will be delivered to this program"
          assert stderr =~ "a quorum queue discards a message"
        end

        # Without --count there is a limit too, and it says so.
        {stdout, stderr} = tail([url <> queue, "--format", "json" | headers])
        assert length(bodies(stdout)) == 20
        assert stderr =~ "That is all without --count"

        # Each of the messages that were shown was delivered once, and nothing else was.
        frames = drain(client, queue, @quorum, 30)
        assert Enum.sort(Enum.map(frames, & &1.body)) == Enum.sort(for n <- 1..30, do: "m#{n}")
        assert frames |> Enum.map(&delivered/1) |> Enum.sum() == 3 * 2 + 20
      end

      # It comes with the second delivery.
      defp delivered(frame), do: String.to_integer(header(frame, "x-delivery-count") || "0")
    else
      test "a queue is browsed: its messages stay, and new ones are shown", context do
        %{client: client, url: url} = context
        :ok = Client.publish_many(client, for(n <- 1..30, do: {"/queue/browsed", "m#{n}"}))

        spawn_link(fn ->
          Process.sleep(1_500)
          Client.publish(client, "/queue/browsed", "later")
        end)

        args = [url <> "/queue/browsed", "--seconds", "3", "--format", "json"]
        {stdout, stderr} = tail(args)
        assert bodies(stdout) == for(n <- 1..30, do: "m#{n}") ++ ["later"]
        refute stderr =~ "will be delivered"
        frames = drain(client, "/queue/browsed", [], 31)
        assert length(frames) == 31
        assert Enum.all?(frames, &(header(&1, "redelivered") in [nil, "false"]))
      end
    end

    test "bench publishes and consumes, and leaves nothing", %{url: url} do
      for ack <- ["auto", "client-individual"] do
        args = [url, "--seconds", "1", "--rate", "100", "--ack", ack, "--json"]
        run = fn -> with_io(fn -> Barytherium.Bench.run(args, "bench") end) end
        assert {{0, json}, _says} = with_io(:stderr, run)
        assert json =~ ~s("published":)
      end
    end

    test "a topic is watched without a consequence", %{client: client, url: url} do
      spawn_link(fn ->
        Process.sleep(1_000)
        Client.publish(client, "/topic/watched", "one")
      end)

      {stdout, stderr} = tail([url <> "/topic/watched", "--count", "1", "--format", "json"])
      assert bodies(stdout) == ["one"]
      refute stderr =~ "will be delivered"
    end
  end
end
