defmodule Barytherium.MistakesTest do
  # What a person meets who mistypes, migrates, or reads a log.
  use Barytherium.ClientCase, async: false

  import ExUnit.CaptureIO
  import Barytherium.NetworkCase, only: [connect: 0, connect: 2]

  alias Barytherium.{Consumer, Network}
  alias Barytherium.Network.Sender

  defmodule Handler do
    use Barytherium.Consumer, subscribe: "/queue/a", backoff: {10, 10}

    @impl true
    def handle_message(_frame, state), do: {:ack, state}
  end

  describe "options" do
    test "of which several have the same name, the first counts, and nil means the default" do
      for opts <- [
            [secure: nil],
            [secure: false, secure: true, cacertfile: nil],
            [send_timeout: 100, send_timeout: "wrong", buffer: nil]
          ] do
        {network, peer} = connect(self(), opts)
        assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
        assert %{tls: nil} = Network.stats(network)
        Peer.close(peer)
      end
    end

    test "of a client and of a consumer, likewise" do
      {listener, url} = broker()
      opts = [url: url, url: "wrong", login: nil, ssl: nil, name: nil, subscribe: nil]
      start_supervised!({Client, Keyword.delete(opts, :subscribe)})
      accept_connected(listener)
      start_supervised!({Handler, opts})
      peer = accept_connected(listener)
      {headers, ""} = confirm(peer, :subscribe)
      assert headers["destination"] == "/queue/a"
    end
  end

  test "a misspelt option is told, also if another one is missing because of it" do
    assert_raise ArgumentError, ~r/unknown option :subcribe.* :subscribe$/, fn ->
      Barytherium.Consumer.start_link(
        Handler,
        [url: "stomp://localhost", subcribe: "/queue/a"],
        []
      )
    end
  end

  test "a destination in the URL of a client is told where it belongs" do
    assert_raise ArgumentError, ~r{did you mean subscribe: "/queue/a"\?}, fn ->
      Client.start_link(url: "stomp://localhost/queue/a")
    end
  end

  test "a consumer without a callback for messages is told when it is compiled" do
    code = "defmodule Barytherium.Empty, do: use(Barytherium.Consumer, subscribe: \"/queue/a\")"
    warning = capture_io(:stderr, fn -> Code.compile_string(code) end)

    assert warning =~
             "Barytherium.Empty uses Barytherium.Consumer and has neither handle_message/2"
  end

  test "arguments that are nothing raise in the caller" do
    client = start_supervised!({Client, url: "stomp://127.0.0.1:1", backoff: {10, 10}})

    for call <- [
          &Client.subscribe(&1, nil),
          &Client.subscribe(&1, ""),
          &Client.publish(&1, nil, "body"),
          &Client.publish_many(&1, nil),
          &Client.transaction(&1, nil),
          &Client.ack(&1, nil),
          &Client.nack(&1, nil)
        ] do
      assert_raise ArgumentError, fn -> call.(client) end
    end
  end

  test "a port that is taken does not end who starts a test broker" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)
    assert Barytherium.TestBroker.start_link(port: port) == {:error, :eaddrinuse}
  end

  test "an option of a subscription among those of a consumer is told where it belongs" do
    assert_raise ArgumentError, ~r/subscribe: {destination, prefetch: \.\.\.}/, fn ->
      Handler.start_link(url: "stomp://localhost", prefetch: 5)
    end
  end

  defp processes do
    {listener, url} = broker()
    client = start_supervised!({Client, url: url})
    accept_connected(listener)
    consumer = start_supervised!({Handler, url: url, handlers: 2})
    confirm(accept_connected(listener), :subscribe)
    [below] = Consumer.clients(consumer)

    others =
      for {:terminator, pid, _type, _modules} <- Supervisor.which_children(consumer), do: pid

    [client, below] ++ others ++ Enum.flat_map([client, below], &linked(&1, consumer))
  end

  # The network with its sender and receiver, and the processes with the callbacks.
  defp linked(client, consumer) do
    %{network: network} = Client.status(client)
    eventually(fn -> :sys.get_state(network).receiver_pid != nil end)
    {_state, data} = :sys.get_state(client)
    handlers = if data.handlers, do: data.handlers.pid
    %{sender_pid: sender, receiver_pid: receiver} = :sys.get_state(network)
    workers = if handlers, do: :sys.get_state(handlers).workers, else: []

    for pid <- [network, sender, receiver, handlers | workers],
        pid not in [nil, consumer],
        do: pid
  end

  test "strays of every form are harmless, and calls are answered" do
    pids = processes()

    for pid <- pids, stray <- [:stray, {:write, 1, 2}, {:client, :stray}, {:barytherium, :x}] do
      GenServer.cast(pid, stray)
      send(pid, stray)
      send(pid, {:EXIT, self(), :normal})
      Process.exit(pid, :normal)
      assert GenServer.call(pid, stray) == {:error, :unknown_call}
    end

    assert Enum.all?(pids, &Process.alive?/1)
  end

  test "Sender.write/2 to the network process is logged, and harmless" do
    {network, peer} = connect()
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}

    log =
      capture_log(fn ->
        Sender.write(network, [%Frame{command: :ack}])
        :sys.get_state(network)
      end)

    assert log =~ "called with the network process"
    Peer.close(peer)
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
  end

  for reason <- [:shutdown, {:shutdown, :why}, :crash] do
    test "an exit signal with #{inspect(reason)} ends a network after what was written" do
      Process.flag(:trap_exit, true)
      {network, peer} = connect()
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
      Sender.write(sender, [%Frame{command: :connect, headers: [{"accept-version", "1.2"}]}])
      Peer.send(peer, "CONNECTED\nversion:1.2\n\n\0")
      assert_receive {:"$gen_cast", {:barytherium, :frames, _connected}}
      Sender.write(sender, [%Frame{command: :send, headers: [{"destination", "/a"}]}])

      log =
        capture_log(fn ->
          spawn(fn -> Process.exit(network, unquote(Macro.escape(reason))) end)
          assert_receive {:EXIT, ^network, ended}
          assert ended == unquote(Macro.escape(reason))
        end)

      assert log =~ "terminating" == (unquote(Macro.escape(reason)) == :crash)
      {bytes, _how} = Peer.read_all(peer)
      assert bytes =~ "SEND"
      assert bytes =~ "DISCONNECT"
    end
  end

  test "a client whose linked process crashes is started again" do
    {listener, url} = broker()
    {:ok, supervisor} = Supervisor.start_link([{Client, url: url}], strategy: :one_for_one)
    accept_connected(listener)
    [{_id, client, _type, _modules}] = Supervisor.which_children(supervisor)
    spawn(fn -> Process.link(client) && exit(:boom) end)
    accept_connected(listener)
    [{_id, again, _type, _modules}] = Supervisor.which_children(supervisor)
    assert again != client
    Supervisor.stop(supervisor)
  end

  for {what, module} <- [network: Network, client: Client] do
    test "a process that ends with a reason is one crash in the log, and not two (#{what})" do
      {listener, url} = broker()

      log =
        capture_log(fn ->
          test = self()

          {owner, monitor} =
            spawn_monitor(fn ->
              {:ok, pid} =
                case unquote(module) do
                  Network -> Network.start_link(self(), "127.0.0.1", Peer.port(listener))
                  Client -> Client.start_link(url: url)
                end

              send(test, {:started, pid})
              receive do: (:crash -> exit(:some_reason))
            end)

          assert_receive {:started, pid}
          ended = Process.monitor(pid)
          Peer.accept(listener)
          send(owner, :crash)
          assert_receive {:DOWN, ^monitor, :process, ^owner, :some_reason}
          assert_receive {:DOWN, ^ended, :process, ^pid, :shutdown}
        end)

      refute log =~ "terminating"
      refute log =~ "some_reason"
    end
  end

  Code.require_file("../fixtures/known_users.ex", __DIR__)

  test "what two users of the package do works, with exactly one disconnect" do
    broker = start_supervised!({Barytherium.TestBroker, rate: 100, body: "x"})
    config = %{"host" => "127.0.0.1"}
    args = {config["host"], Barytherium.TestBroker.port(broker), config, self()}
    start_supervised!({KnownUsers, args})
    assert_receive {:got, :connected}
    assert_receive {:got, :message}
    stop_supervised!(Barytherium.TestBroker)
    assert_receive {:disconnected, :closed}
    refute_receive {:disconnected, _reason}, 50
  end

  describe "a URL" do
    for {url, text} <- [
          {"amqp://h", ~r/no scheme "amqp", but stomp, stomp\+ssl, ws, wss/},
          {"stomps://h", ~r/no scheme "stomps"/},
          {"stomp+tls://h", ~r/no scheme "stomp\+tls"/},
          {"h:61613", ~r/not a URL: stomp:/},
          {"stomp://me:p@hunter2:/w@h", ~r/write %40 for @/},
          {"stomp://me:hunter2#@h", ~r/write %40 for @/},
          {"stomp://me:12/hunter2@h:61613", ~r/%2F for \//},
          {"stomp://me:hunter2%@h", ~r/% that encodes nothing: write %25/},
          {"stomp://h/%zz", ~r/% that encodes nothing/},
          {"stomp://h:", ~r/port is missing/},
          {"stomp://me:hunter2@h:/v", ~r/port is missing/},
          {"stomp://", ~r/not a URL/}
        ] do
      test "#{url} is refused, and why" do
        for opts <- [[url: unquote(url)], [urls: ["stomp://good", unquote(url)]]] do
          error = assert_raise ArgumentError, fn -> Client.start_link(opts) end
          assert Exception.message(error) =~ unquote(Macro.escape(text))
          refute Exception.message(error) =~ "hunter2"
        end
      end
    end

    test "may have an @ in the virtual host" do
      {listener, url} = broker("me:secret@")
      start_supervised!({Client, url: url <> "/a@b"})
      {_peer, connect} = accept(listener)
      assert Frame.header(connect, "host") == "a@b"
    end

    test "takes the place of a host and a port" do
      for opts <- [[host: "h"], [url: "stomp://h", port: 61_613]] do
        assert_raise ArgumentError, ~r/the broker is in option :url/, fn ->
          Client.start_link(opts)
        end
      end
    end
  end

  describe "the log" do
    test "has the first line of an ERROR's body, and no passcode" do
      for {body, there, not_there} <- [
            {"Access refused for user 'me'\nmore", "Bad CONNECT: Access refused for user 'me'",
             "more"},
            {"passcode:hunter2", "Bad CONNECT", "hunter2"}
          ] do
        {listener, url} = broker()
        client = start_supervised!({Client, url: url, backoff: {60_000, 60_000}})

        log =
          capture_log(fn ->
            {peer, _connect} = accept(listener)
            reply(peer, :error, [{"message", "Bad CONNECT"}], body)
            eventually(fn -> Client.status(client).error != nil end)
          end)

        assert [_, _, _] = String.split(log, there)
        refute log =~ not_there
        stop_supervised!(Client)
      end
    end

    test "says that a peer speaks TLS" do
      log =
        capture_log(fn ->
          {_network, peer} = connect()
          assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
          Peer.send(peer, <<0x15, 3, 3, 0, 2, 2, 10>>)
          assert_receive {:"$gen_cast", {:barytherium, :disconnect, :parse_error}}
        end)

      assert log =~ "speaks TLS"
    end

    for tls <- [:native, :otp] do
      test "says that a peer does not speak TLS (#{tls})" do
        listener = Peer.listen(:tcp)
        opts = [secure: true, tls: unquote(tls), verify: :verify_none]

        log =
          capture_log(fn ->
            {:ok, _network} = Network.start_link(self(), "127.0.0.1", Peer.port(listener), opts)
            peer = Peer.accept(listener)
            Peer.send(peer, "ERROR\nmessage:Bad command\n\n\0")
            assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, :unexpected_message}}}
          end)

        assert log =~ ~r/speak TLS on this port/
      end
    end
  end
end
