# STOMP in a WebSocket: RabbitMQ's `web_stomp`, and ActiveMQ's `ws`, which `script/websocket` builds.
for kind <- [Barytherium.Brokers.RabbitMQ, Barytherium.Brokers.ActiveMQ] do
  defmodule Module.concat(kind, WebSocketTest) do
    use Barytherium.BrokerCase, async: true, broker: kind

    import Barytherium.ClientCase, only: [receive_messages: 2]

    alias Barytherium.{Client, HttpProxy}

    @moduletag capture_log: true

    @rabbitmq kind == Barytherium.Brokers.RabbitMQ
    @path if @rabbitmq, do: "/ws", else: "/"

    unless kind.web?(), do: @moduletag(skip: "run script/websocket activemq")

    defp url(broker, userinfo \\ "guest:guest"),
      do: "ws://#{userinfo}@127.0.0.1:#{broker.web.port}#{@path}"

    defp subscribed(client, opts \\ []) do
      queue = "/queue/web#{System.unique_integer([:positive])}"
      {:ok, subscription} = Client.subscribe(client, queue, opts)
      {queue, subscription}
    end

    test "a client publishes, subscribes, acknowledges, and disconnects", %{broker: broker} do
      client = connected_client(url: url(broker), heart_beat: {500, 500})
      {queue, subscription} = subscribed(client, ack: :client_individual)

      for version <- ["1.0", "1.1", "1.2"] do
        publisher = connected_client(url: url(broker), versions: [version])
        assert Client.publish(publisher, queue, "späť #{version}") == :ok
        assert [%Frame{body: body} = frame] = receive_messages(subscription, 1)
        assert body == "späť " <> version
        assert Client.ack(client, frame, receipt: true) == :ok
      end

      # Heart-beats in both directions keep it alive.
      Process.sleep(3_000)
      assert %{state: :connected, connections: 1} = Client.status(client)
      assert Client.close(client) == :ok
    end

    test "the guide", %{broker: broker} do
      text = File.read!("guides/websocket.md")
      [client, network] = for [_all, code] <- Regex.scan(~r/```elixir\n(.*?)```/s, text), do: code

      printed =
        ExUnit.CaptureIO.capture_io(fn ->
          {_result, binding} =
            client
            |> String.replace("localhost:15674/ws", "127.0.0.1:#{broker.web.port}#{@path}")
            |> Code.eval_string()

          assert Client.close(binding[:client]) == :ok
        end)

      assert printed == "on time\n"

      {{:ok, _network}, _binding} =
        network
        |> String.replace("localhost\", 15674", "127.0.0.1\", #{broker.web.port}")
        |> String.replace("/ws", @path)
        |> Code.eval_string()

      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    end

    test "large and many messages", %{broker: broker} do
      client = connected_client(url: url(broker))
      {queue, subscription} = subscribed(client, prefetch: 2_000)
      # Jetty takes 64 KiB of a message, if it is not told otherwise.
      large = String.duplicate("x", if(@rabbitmq, do: 1_000_000, else: 30_000))
      publisher = connected_client(url: url(broker))
      assert Client.publish(publisher, queue, large) == :ok
      messages = for n <- 1..1_000, do: {queue, "#{n}"}
      publishing = Task.async(fn -> Client.publish_many(publisher, messages) end)
      bodies = for frame <- receive_messages(subscription, 1_001), do: frame.body
      assert bodies == [large | Enum.map(1..1_000, &"#{&1}")]
      assert Task.await(publishing) == :ok
    end

    if @rabbitmq do
      test "bodies of any bytes", %{broker: broker} do
        client = connected_client(url: url(broker))
        {queue, subscription} = subscribed(client)
        bytes = :binary.list_to_bin(Enum.to_list(0..255))
        assert Client.publish(client, queue, bytes) == :ok
        assert [%Frame{body: ^bytes}] = receive_messages(subscription, 1)
      end

      test "the login may be in the opening handshake", %{broker: broker} do
        @broker_kind.take_http_login(broker, true)
        on_exit(fn -> @broker_kind.take_http_login(broker, false) end)
        connected_client(url: url(broker), login_in: :upgrade)

        assert refused(url: url(broker, "guest:wrong"), login_in: :upgrade) == :refused
      end
    else
      test "bodies that are not UTF-8 are lost on the way", %{broker: broker} do
        client = connected_client(url: url(broker))
        {queue, _subscription} = subscribed(client)
        # A message of bytes is dropped.
        assert {:error, %{reason: :timeout}} =
                 Client.publish(client, queue, <<0xFF>>, timeout: 1_000)
      end
    end

    for tls <- [:native, :otp] do
      test "with TLS (#{tls})", %{broker: broker} do
        url = "wss://guest:guest@localhost:#{broker.web.tls_port}#{@path}"

        client =
          connected_client(url: url, tls: unquote(tls), ssl: [cacertfile: broker.tls.cacertfile])

        {queue, subscription} = subscribed(client)
        assert Client.stats(client).tls == unquote(tls)
        assert Client.publish(client, queue, "x") == :ok
        assert [%Frame{body: "x"}] = receive_messages(subscription, 1)
      end
    end

    test "through a proxy", %{broker: broker} do
      client = connected_client(url: url(broker), proxy: "http://localhost:#{HttpProxy.start()}")
      assert_receive {:proxied, _target, _headers}
      {queue, subscription} = subscribed(client)
      assert Client.publish(client, queue, "x") == :ok
      assert [%Frame{body: "x"}] = receive_messages(subscription, 1)
    end

    test "a wrong passcode, and a wrong path", %{broker: broker} do
      assert refused(url: url(broker, "guest:wrong")) == :refused
      if @rabbitmq, do: assert(refused(url: url(broker) <> "/nothing") == :upgrade_refused)
    end

    defp refused(opts) do
      Process.flag(:trap_exit, true)
      {:ok, client} = Client.start_link([max_attempts: 1] ++ opts)
      assert_receive {:EXIT, ^client, {:shutdown, {:max_attempts, reason}}}
      reason
    end
  end
end
