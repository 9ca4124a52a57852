# What brokers do, and what this library does about it. Each row of `guides/brokers.md` about these two
# brokers has a test here, or says where it is.
for kind <- [Barytherium.Brokers.RabbitMQ, Barytherium.Brokers.ActiveMQ] do
  defmodule Module.concat([kind, WaysTest]) do
    use Barytherium.BrokerCase, async: true, broker: kind

    alias Barytherium.Network

    @versions ["1.0", "1.1", "1.2"]

    # The connections that are idle for a minute, with heart-beats every second. A broker's first one may
    # come late, and its scheduler may be late too.
    @idle 60
    @minute 60_000

    # They are idle while the other tests run.
    setup_all %{broker: broker} do
      test = self()
      pid = spawn_link(fn -> idle(broker, test) end)
      assert_receive {^pid, :connected}, 30_000
      %{idle: pid, since: System.monotonic_time(:millisecond)}
    end

    defp idle(broker, test) do
      for _n <- 1..@idle, do: connected(broker, [{"heart-beat", "1000,1000"}])
      send(test, {self(), :connected})

      receive do
        {:what_came, from} -> send(from, {self(), :erlang.process_info(self(), :messages)})
      end
    end

    # Characters from 1 to 255, as UTF-8, because Java's strings hold nothing else; and what looks like
    # line ends and escapes.
    @texts Enum.map(1..255, &<<&1::utf8>>) ++
             ["\r\n", "\\n", "\\c", "\\r", "\\t", "\\\\", "\\\\n", "C:\\new:x", "http://x:8080/a"]

    # ActiveMQ has no way to write these in 1.0.
    defp carried?("1.0", name, value, Barytherium.Brokers.ActiveMQ),
      do:
        not String.contains?(name, [":", "\r", "\n"]) and
          not String.contains?(value, ["\r", "\n"])

    defp carried?(_version, _name, _value, _kind), do: true

    # Messages to itself, with these headers.
    defp echo(sender, queue, headers) do
      frame = %Frame{command: :send, headers: [{"destination", queue} | headers], body: "b"}

      with :ok <- Sender.write(sender, [frame], :sync) do
        assert [%Frame{command: :message, body: "b"} = message] = frames()
        message
      end
    end

    test "idle connections with heart-beats every second live", %{idle: idle, since: since} do
      Process.sleep(max(since + @minute - System.monotonic_time(:millisecond), 0))
      send(idle, {:what_came, self()})
      assert_receive {^idle, {:messages, []}}
    end

    test "a client of 1.0 writes what the broker reads", %{broker: broker} do
      url = "stomp://guest:guest@127.0.0.1:#{broker.port}"
      client = start_supervised!({Barytherium.Client, url: url, versions: ["1.0"]})
      opts = [headers: [{"k", "a\nb"}], wait: true]
      result = Barytherium.Client.publish(client, "/queue/client-1.0", "", opts)

      case @broker_kind do
        Barytherium.Brokers.RabbitMQ -> assert result == :ok
        Barytherium.Brokers.ActiveMQ -> assert {:error, %{reason: :unescapable}} = result
      end
    end

    for version <- @versions do
      test "every byte in names and values comes back in #{version}", %{broker: broker} do
        version = unquote(version)
        {sender, _connected} = connected(broker, [{"accept-version", version}])
        queue = "/queue/bytes-#{version}"
        subscribe(sender, queue)

        headers =
          for {text, n} <- Enum.with_index(@texts),
              {name, value} <- [{"n#{n}", "v#{text}w"}, {"m#{n}#{text}w", "v"}],
              do: {name, value}

        {carried, refused} =
          Enum.split_with(headers, fn {name, value} ->
            carried?(version, name, value, @broker_kind)
          end)

        %Frame{headers: read} = echo(sender, queue, carried)
        read = Map.new(read)

        assert for({name, value} <- carried, read[name] != value, do: {name, value, read[name]}) ==
                 []

        for header <- refused, do: assert(echo(sender, queue, [header]) == {:error, :unescapable})
      end

      test "blanks and line ends around values come back in #{version}, as far as it has them", %{
        broker: broker
      } do
        version = unquote(version)
        {sender, _connected} = connected(broker, [{"accept-version", version}])
        queue = "/queue/ends-#{version}"
        subscribe(sender, queue)
        values = [" a ", "\ta\t", " ", "a\\"] ++ if version == "1.0", do: [], else: ["a\r", "\na"]
        headers = for {value, n} <- Enum.with_index(values), do: {"h#{n}", value}
        read = echo(sender, queue, headers).headers |> Map.new()

        kept =
          case {version, @broker_kind} do
            {"1.0", Barytherium.Brokers.ActiveMQ} -> &String.trim/1
            # Only blanks: a tab stays.
            {"1.0", Barytherium.Brokers.RabbitMQ} -> &String.trim_leading(&1, " ")
            _newer -> & &1
          end

        for {name, value} <- headers, do: assert({name, read[name]} == {name, kept.(value)})
      end

      test "every user can log in in #{version}", %{broker: broker} do
        for {name, passcode} <- Broker.users(), command <- [:connect, :stomp] do
          {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, broker.port)
          assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}

          headers = [
            {"accept-version", unquote(version)},
            {"host", "/"},
            {"login", name},
            {"passcode", passcode}
          ]

          Sender.write(sender, [%Frame{command: command, headers: headers}])
          assert [%Frame{command: :connected}] = frames()
          assert Network.close(network) == :ok
          assert [%Frame{command: :receipt}] = frames()
          assert_disconnect(:closed)
        end
      end
    end
  end
end
