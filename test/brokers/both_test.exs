# Tests that have to pass with every broker. Tests for one broker only are in files of their own.
for kind <- [Barytherium.Brokers.RabbitMQ, Barytherium.Brokers.ActiveMQ] do
  defmodule Module.concat(kind, Test) do
    use Barytherium.BrokerCase, async: true, broker: kind

    alias Barytherium.{FaultProxy, Network}

    @mib 1024 * 1024

    defp receive_message do
      assert [%Frame{command: :message} = message] = frames()
      message
    end

    # Sends to a queue that `sender` is subscribed to, and returns the message.
    defp echo(sender, queue, headers, body) do
      send = %Frame{command: :send, headers: [{"destination", queue} | headers], body: body}
      Sender.write(sender, [send])
      receive_message()
    end

    # The frames before the one with this body.
    defp until(body) do
      frames = frames()

      case Enum.split_while(frames, &(&1.body != body)) do
        {before, []} -> before ++ until(body)
        {before, [_last]} -> before
      end
    end

    defp acknowledge(sender, message, command \\ :ack),
      do: send_frame(sender, command, [{"id", header(message, "ack")}])

    describe "bodies and headers" do
      setup %{broker: broker} do
        {sender, _connected} = connected(broker)
        subscribe(sender, "/queue/echo")
        %{sender: sender}
      end

      test "binary bodies with NULs, empty ones, and one of 10 MiB are unchanged", %{
        sender: sender
      } do
        all = for byte <- 0..255, into: "", do: <<byte>>
        large = :binary.copy(all, div(10 * @mib, 256))

        for body <- [all, <<0>>, <<0, 0, 10, 0>>, "", "plain", large, "after"] do
          assert echo(sender, "/queue/echo", [], body).body == body
        end
      end

      test "values with UTF-8 and escapes are unchanged", %{sender: sender} do
        for value <- ["grüß 日本", "a:b", "line\nline", "C:\\new", "\\n", " blanks ", ""] do
          assert header(echo(sender, "/queue/echo", [{"x", value}], "b"), "x") == value
        end
      end

      test "values that are not UTF-8 do not break frames", %{sender: sender} do
        message = echo(sender, "/queue/echo", [{"x", <<0xFF, 0xFE, ?a>>}], "b")
        # ActiveMQ replaces the invalid bytes, because Java's strings cannot hold them.
        assert String.ends_with?(header(message, "x"), "a")
        assert message.body == "b"
        assert echo(sender, "/queue/echo", [], "next").body == "next"
      end
    end

    for {version, headers} <- [
          {"1.0", [{"accept-version", "1.0"}]},
          {"1.1", [{"accept-version", "1.0,1.1"}]},
          {"1.2", [{"accept-version", "1.0,1.1,1.2"}]}
        ] do
      test "version #{version} is negotiated and spoken", %{broker: broker} do
        {sender, connected} = connected(broker, unquote(headers))
        assert (header(connected, "version") || "1.0") == unquote(version)
        queue = "/queue/version-#{unquote(version)}"
        subscribe(sender, queue, [{"ack", "client"}])
        message = echo(sender, queue, [{"x", "y"}], <<1, 0, 2>>)
        assert {header(message, "x"), message.body} == {"y", <<1, 0, 2>>}

        # ACK names the message in 1.0 and 1.1. In 1.2 it has the value of the header `ack`.
        ack =
          if unquote(version) == "1.2",
            do: [{"id", header(message, "ack")}],
            else: [{"message-id", header(message, "message-id")}, {"subscription", "0"}]

        send_frame(sender, :ack, ack)
        disconnect(sender)
      end
    end

    for version <- [:"tlsv1.2", :"tlsv1.3"], tls <- [:native, :otp] do
      test "#{version} works (#{tls}), verified, with and without a client certificate",
           %{broker: broker} do
        %{tls: %{port: port, cacertfile: cacertfile, client: client}} = broker
        secure = [secure: true, port: port, cacertfile: cacertfile, versions: [unquote(version)]]
        secure = secure ++ [tls: unquote(tls)]

        for {host, opts} <- [{"localhost", []}, {"127.0.0.1", client}] do
          {sender, _connected} = connected(broker, [], secure ++ [host: host] ++ opts)
          assert Network.stats(network()).tls == unquote(tls)
          queue = "/queue/tls-#{unquote(version)}"
          subscribe(sender, queue)

          for size <- [0, 1, 100_000] do
            body = :crypto.strong_rand_bytes(size)
            assert echo(sender, queue, [], body).body == body
          end

          disconnect(sender)
        end
      end
    end

    test "a certificate of an unknown authority is not trusted", %{broker: broker} do
      for tls <- [:native, :otp] do
        Network.start_link(self(), "localhost", broker.tls.port, secure: true, tls: tls)
        assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, :unknown_ca}}}
      end
    end

    @tag capture_log: true
    test "a frame before CONNECT is answered with ERROR, and ends the connection",
         %{broker: broker} do
      {:ok, _network} = Network.start_link(self(), "localhost", broker.port)
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
      subscription = [{"id", "0"}, {"destination", "/queue/a"}]
      Sender.write(sender, [%Frame{command: :subscribe, headers: subscription}])
      assert [%Frame{command: :error}] = frames()
      assert_disconnect(:closed)
    end

    test "Network.close/2 loses no message", %{broker: broker} do
      {sender, _connected} = connected(broker)
      sends = for n <- 1..100, do: send_frame("/queue/close", "#{n}")
      Sender.write(sender, sends)
      assert :ok = Network.close(network())
      assert [%Frame{command: :receipt}] = frames()
      assert_disconnect(:closed)
      assert_all_there(broker, "/queue/close", 100)
    end

    test "no message is lost when the callback process ends right after writing", context do
      %{broker: broker} = context

      for reason <- [:normal, :shutdown, :kill], n <- 1..5 do
        queue = "/queue/deployment-#{reason}-#{n}"

        {callback, monitor} =
          spawn_monitor(fn ->
            {sender, _connected} = connected(broker)
            Sender.write(sender, for(n <- 1..50, do: send_frame(queue, "#{n}")))
            exit(reason)
          end)

        assert_receive {:DOWN, ^monitor, :process, ^callback, ^reason}, 20_000
        assert_all_there(broker, queue, 50)
      end
    end

    defp send_frame(queue, body),
      do: %Frame{command: :send, headers: [{"destination", queue}], body: body}

    defp assert_all_there(broker, queue, count) do
      {sender, _connected} = connected(broker)
      # The messages may come before a receipt, so none is asked for.
      subscription = [{"id", "0"}, {"destination", queue}]
      Sender.write(sender, [%Frame{command: :subscribe, headers: subscription}])
      bodies = count |> frames(fn _frames -> :ok end) |> Enum.map(& &1.body)
      assert bodies == Enum.map(1..count, &to_string/1)
      disconnect(sender)
    end

    test "messages of a transaction arrive if it is committed, and not if it is aborted", %{
      broker: broker
    } do
      {sender, _connected} = connected(broker)
      subscribe(sender, "/queue/transactions")

      for {transaction, ending} <- [{"t1", :abort}, {"t2", :commit}] do
        send_frame(sender, :begin, [{"transaction", transaction}])
        headers = [{"destination", "/queue/transactions"}, {"transaction", transaction}]
        ending = %Frame{command: ending, headers: [{"transaction", transaction}]}
        send = %Frame{command: :send, headers: headers, body: transaction}
        Sender.write(sender, [send, ending])
      end

      assert receive_message().body == "t2"
    end

    test "only messages that were not acknowledged are delivered again", %{broker: broker} do
      {sender, _connected} = connected(broker)
      subscribe(sender, "/queue/again", [{"ack", "client-individual"}])
      assert echo(sender, "/queue/again", [], "kept").body == "kept"
      gone = echo(sender, "/queue/again", [], "gone")
      acknowledge(sender, gone)
      disconnect(sender)

      {sender, _connected} = connected(broker)
      # The message may come before a receipt, so none is asked for.
      subscription = [{"id", "0"}, {"destination", "/queue/again"}, {"ack", "client-individual"}]
      Sender.write(sender, [%Frame{command: :subscribe, headers: subscription}])
      message = receive_message()
      assert {message.body, header(message, "redelivered")} == {"kept", "true"}
      acknowledge(sender, message)
      assert echo(sender, "/queue/again", [], "last").body == "last"
    end

    test "NACK is accepted", %{broker: broker} do
      {sender, _connected} = connected(broker)
      subscribe(sender, "/queue/nack", [{"ack", "client-individual"}])
      message = echo(sender, "/queue/nack", [], "refused")
      Sender.write(sender, [%Frame{command: :nack, headers: [{"id", header(message, "ack")}]}])
      headers = [{"destination", "/queue/nack"}]
      Sender.write(sender, [%Frame{command: :send, headers: headers, body: "next"}])

      # RabbitMQ delivers it again, ActiveMQ does not.
      for again <- until("next"), do: assert(header(again, "redelivered") == "true")
    end

    describe "over a bad network" do
      setup %{broker: broker} do
        {proxy, port} = FaultProxy.start!(broker.port)
        queue = "/queue/#{System.unique_integer([:positive])}"
        %{proxy: proxy, opts: [port: port], queue: queue}
      end

      # Sends numbered messages to the queue that `sender` is subscribed to.
      defp send_numbered(sender, queue, numbers) do
        for number <- numbers do
          headers = [{"destination", queue}]
          body = to_string(number)
          Sender.write(sender, [%Frame{command: :send, headers: headers, body: body}])
        end
      end

      defp bodies(count), do: for(frame <- frames(count, fn _frames -> :ok end), do: frame.body)
      defp numbered(numbers), do: Enum.map(numbers, &to_string/1)

      test "delayed and cut into single bytes, all messages arrive once and in order", context do
        {sender, _connected} = connected(context.broker, [], context.opts)
        subscribe(sender, context.queue)

        for {mode, numbers} <- [{{:delay, 20}, 1..50}, {:bytes, 51..100}] do
          FaultProxy.set(context.proxy, mode)
          send_numbered(sender, context.queue, numbers)
          assert bodies(50) == numbered(numbers)
        end
      end

      test "a stall shorter than the heart-beat's allowance ends nothing", context do
        headers = [{"heart-beat", "1000,1000"}]
        {sender, _connected} = connected(context.broker, headers, context.opts)
        subscribe(sender, context.queue)
        FaultProxy.set(context.proxy, :stall)
        send_numbered(sender, context.queue, 1..3)
        refute_receive {:"$gen_cast", _message}, 1_200
        FaultProxy.set(context.proxy, :pass)
        assert bodies(3) == numbered(1..3)
      end

      test "a longer stall, as of a peer that vanished, is a time-out", context do
        headers = [{"heart-beat", "1000,1000"}]
        {sender, _connected} = connected(context.broker, headers, context.opts)
        subscribe(sender, context.queue)
        send_numbered(sender, context.queue, 1..3)
        assert bodies(3) == numbered(1..3)
        FaultProxy.set(context.proxy, :stall)
        assert_disconnect(:timeout)
      end

      test "a reset in mid-frame is a disconnect with :closed", context do
        {sender, _connected} = connected(context.broker, [], context.opts)
        subscribe(sender, context.queue)
        send_numbered(sender, context.queue, 1..2)
        assert bodies(2) == numbered(1..2)
        FaultProxy.set(context.proxy, {:reset_after, 50})
        send_numbered(sender, context.queue, [3])
        assert_disconnect(:closed)
      end
    end

    describe "a broker for this test only" do
      setup do
        broker = Broker.start!(@broker_kind)
        on_exit(fn -> Broker.stop(broker) end)
        %{own: broker}
      end

      test "is a time-out when it freezes, and :closed when it is killed, once each", %{
        own: broker
      } do
        connected(broker, [{"heart-beat", "1000,1000"}])
        Broker.signal(broker, "STOP")
        assert_disconnect(:timeout)
        Broker.signal(broker, "CONT")

        connected(broker)
        Broker.signal(broker, "KILL")
        assert_disconnect(:closed)
      end
    end
  end
end
