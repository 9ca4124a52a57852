defmodule Barytherium.StoppingTest do
  @moduledoc "What happens to written frames, and to processes, when a process stops."
  use ExUnit.Case, async: true

  import Barytherium.NetworkCase

  alias Barytherium.{Connection, Frame, Network, Peer, TestBroker}
  alias Barytherium.Network.{Receiver, Sender}

  @moduletag capture_log: true

  # A callback process that connects, calls `act`, and ends when it is told to.
  defp callback(test, act) do
    spawn(fn ->
      {network, peer} = connect(self())
      {_network, sender} = connected(network, peer)
      :ok = Connection.give(peer, test)
      act.(sender)
      send(test, {:acted, network, peer})
      receive do: ({:exit, reason} -> exit(reason))
    end)
  end

  for reason <- [:normal, :shutdown, :kill, :boom] do
    test "when the callback process ends, written frames and DISCONNECT are sent (#{reason})" do
      ack = &%Frame{command: :ack, headers: [{"id", &1}]}
      write = fn sender -> for n <- 1..500, do: Sender.write(sender, [ack.(n)]) end
      callback = callback(self(), write)
      assert_receive {:acted, network, peer}
      monitor = Process.monitor(network)

      if unquote(reason) == :kill,
        do: Process.exit(callback, :kill),
        else: send(callback, {:exit, unquote(reason)})

      written = for n <- 1..500, into: "", do: "ACK\nid:#{n}\n\n\0"
      assert Peer.read_all(peer) == {written <> "DISCONNECT\n\n\0", :closed}
      assert_receive {:DOWN, ^monitor, :process, ^network, _reason}
    end
  end

  describe "while the broker feeds," do
    # A peer that sends all the time, and reads only when it is told to. Its task returns what it read,
    # and the reason of the end.
    defp feeding_peer(transport) do
      test = self()
      listener = Peer.listen(transport)

      peer =
        Task.async(fn ->
          peer = Peer.accept(listener, transport)
          Peer.send(peer, "CONNECTED\nversion:1.2\n\n\0")
          feeder = spawn_link(fn -> receive do: (:feed -> feed(peer, 0)) end)
          send(test, {:feeder, feeder})
          receive do: (:read -> :ok)
          Peer.read_all(peer)
        end)

      {Peer.port(listener), peer}
    end

    # The body of each frame repeats its number, so a cut frame can be recognised.
    defp feed(peer, n) do
      bodies = for n <- n..(n + 99), do: ["MESSAGE\n\n", String.duplicate("#{n},", 200), 0]
      if Peer.try_send(peer, bodies) == :ok, do: feed(peer, n + 100)
    end

    for transport <- [:tcp, :tls, :ssl, :ws, :wss], ending <- [:stop, :kill] do
      test "all written frames arrive, and no received frame is cut (#{transport}, #{ending})" do
        {port, peer} = feeding_peer(unquote(transport))
        opts = Peer.options(unquote(transport))
        test = self()
        callback = spawn(fn -> check_frames(test) end)
        # Not linked, so that only the callback process can end the network.
        state = %{opts: opts, host: "127.0.0.1", port: port, callback_handler: callback}
        {:ok, network} = GenServer.start(Network, state)
        assert_receive {:connected, sender}, 5_000
        Sender.write(sender, [%Frame{command: :connect}])
        assert_receive {:feeder, feeder}
        send(feeder, :feed)
        assert_receive :fed, 5_000
        acks = for n <- 1..500, do: %Frame{command: :ack, headers: [{"id", n}]}
        Enum.each(acks, &Sender.write(sender, [&1]))

        stopping =
          Task.async(fn ->
            if unquote(ending) == :stop,
              do: GenServer.stop(network),
              else: Process.exit(callback, :kill)
          end)

        # The peer begins to read only after the network has begun to stop.
        Process.sleep(200)
        send(peer.pid, :read)
        {read, _reason} = Task.await(peer)
        Task.await(stopping)
        written = for n <- 1..500, into: "", do: "ACK\nid:#{n}\n\n\0"
        assert read == "CONNECT\n\n\0" <> written <> "DISCONNECT\n\n\0"
        refute_received :cut
      end
    end

    defp check_frames(test) do
      receive do
        {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}} ->
          send(test, {:connected, sender})

        {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
          for %Frame{command: :message, body: body} <- frames do
            [first | _] = String.split(body, ",", parts: 2)
            if body != String.duplicate(first <> ",", 200), do: send(test, :cut)
          end

          if match?([%Frame{command: :message} | _], frames), do: send(test, :fed)

        _other ->
          :ok
      end

      check_frames(test)
    end
  end

  test "GenServer.stop/1 of the network sends them too, and logs no crash" do
    {network, peer} = connect(self())
    {network, sender} = connected(network, peer)

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        Sender.write(sender, [%Frame{command: :send, body: "last"}])
        GenServer.stop(network)
      end)

    assert {"SEND\ncontent-length:4\n\nlast\0DISCONNECT\n\n\0", :closed} = Peer.read_all(peer)
    # Tests that run at the same time log too.
    refute log =~ "#{inspect(network)} terminating"
  end

  test "GenServer.stop/1 works while connecting, before CONNECTED, and after the end" do
    # Nobody accepts. The operating system completes the TCP connection, but the TLS handshake hangs.
    {:ok, listener} = :gen_tcp.listen(0, [:binary, active: false, ip: {127, 0, 0, 1}])
    {:ok, port} = :inet.port(listener)
    opts = [secure: true, verify: :verify_none]
    {:ok, network} = Network.start_link(self(), "127.0.0.1", port, opts)
    assert %{frames: 0} = Network.stats(network)
    GenServer.stop(network)

    {network, peer} = connect(self())
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    GenServer.stop(network)
    assert {"", :closed} = Peer.read_all(peer)

    {network, peer} = connect(self())
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    Peer.close(peer)
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
    GenServer.stop(network)
  end

  test "a network ends when its callback process ends while connecting" do
    {:ok, listener} = :gen_tcp.listen(0, [:binary, active: false, ip: {127, 0, 0, 1}])
    {:ok, port} = :inet.port(listener)
    test = self()

    callback =
      spawn(fn ->
        opts = [secure: true, verify: :verify_none]
        {:ok, network} = Network.start_link(self(), "127.0.0.1", port, opts)
        send(test, {:network, network})
        receive do: (:end -> :ok)
      end)

    assert_receive {:network, network}
    monitor = Process.monitor(network)
    send(callback, :end)
    assert_receive {:DOWN, ^monitor, :process, ^network, _reason}
  end

  describe "Network.close/2" do
    test "writes waiting frames and DISCONNECT with a receipt, and waits for the broker" do
      {network, peer} = connect(self())
      {network, sender} = connected(network, peer)
      Sender.write(sender, [%Frame{command: :send, body: "last"}])
      closing = Task.async(fn -> Network.close(network) end)
      second = Task.async(fn -> Network.close(network) end)
      written = "SEND\ncontent-length:4\n\nlast\0DISCONNECT\nreceipt:"
      assert {:ok, ^written} = Peer.recv(peer, byte_size(written))
      refute Task.yield(closing, 50)
      Peer.send(peer, "RECEIPT\nreceipt-id:1\n\n\0")
      Peer.close(peer)
      assert [:ok, :ok] = Task.await_many([closing, second])
      assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :receipt}], _}}}
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      assert :ok = Network.close(network)
    end

    test "closes at once if no CONNECT was written" do
      {network, peer} = connect(self())
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
      assert :ok = Network.close(network)
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      assert {"", :closed} = Peer.read_all(peer)
    end

    test "returns an error after its time-out" do
      {network, peer} = connect(self())
      {network, _sender} = connected(network, peer)
      assert {:error, :timeout} = Network.close(network, 50)
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      assert {"DISCONNECT\n" <> _receipt, _reason} = Peer.read_all(peer)
    end
  end

  test "a peer that accepts and sends nothing is a time-out, and the network answers meanwhile" do
    listener = Peer.listen(:tcp)
    opts = [secure: true, verify: :verify_none, connect_timeout: 300]
    {:ok, network} = Network.start_link(self(), "127.0.0.1", Peer.port(listener), opts)
    assert %{frames: 0} = Network.stats(network)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, :timeout}}}
    assert %{is_connected: false} = :sys.get_state(network)
  end

  test "the state has is_connected, because users of the package read it" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)
    state = %{opts: [], host: ~c"127.0.0.1", port: port, callback_handler: self()}
    {:ok, network} = GenServer.start(Network, state, [])
    peer = Peer.accept(listener)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    assert %{is_connected: true} = :sys.get_state(network)
    Peer.close(peer)
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
    assert %{is_connected: false} = :sys.get_state(network)
  end

  test "stray messages end no process" do
    {network, peer} = connect(self())
    {network, sender} = connected(network, peer)
    %{receiver_pid: receiver} = :sys.get_state(network)
    for pid <- [network, sender, receiver], do: send(pid, {:stray, make_ref()})
    Peer.send(peer, "MESSAGE\n\nhi\0")
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{body: "hi"}], _}}}
    assert :ok = Sender.write(sender, [%Frame{command: :send}], :sync)
    assert Enum.all?([network, sender, receiver], &Process.alive?/1)
  end

  test "a supervisor can start all of them by their child specs" do
    {socket, peer} = Peer.pair()
    broker = start_supervised!(TestBroker)
    port = TestBroker.port(broker)

    children = [
      {Network, {self(), "127.0.0.1", port}},
      {Barytherium.DefaultCallbackHandler, ["127.0.0.1", port, "/"]},
      {Receiver, {socket, self(), self(), self()}}
    ]

    {:ok, supervisor} = Supervisor.start_link(children, strategy: :one_for_one)
    assert %{active: 3} = Supervisor.count_children(supervisor)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    # The call shows that the receiver is running.
    Peer.send(peer, "CONNECTED\n\n\0")
    assert_receive {:"$gen_call", from, {:connected_frame, _frame}}
    GenServer.reply(from, {0, 0})
    :ok = Supervisor.stop(supervisor)
    Peer.assert_closed(peer)
  end

  for who <- [:sender_pid, :receiver_pid] do
    test "the end of the #{who} ends the connection with a disconnect" do
      state_of = fn network -> Map.fetch!(:sys.get_state(network), unquote(who)) end
      listener = Peer.listen(:tcp)
      state = %{host: "127.0.0.1", port: Peer.port(listener), opts: [], callback_handler: self()}
      {:ok, network} = GenServer.start(Network, state)
      peer = Peer.accept(listener)
      {network, _sender} = connected(network, peer)
      Process.exit(state_of.(network), :kill)
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      assert %{is_connected: false} = :sys.get_state(network)
      Peer.assert_closed(peer)
    end
  end

  test "writes that wait for CONNECTED are counted, and limited" do
    {network, peer} = connect(self(), max_send_queue: 10_000)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Sender.write(sender, [%Frame{command: :connect}])
    assert {:ok, "CONNECT\n\n\0"} = Peer.recv(peer)
    for _n <- 1..3, do: Sender.write(sender, [%Frame{command: :send, body: "x"}])
    :sys.get_state(sender)
    assert Network.stats(network).bytes_waiting > 300
    for _n <- 1..100, do: Sender.write(sender, [%Frame{command: :send, body: "x"}])
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :enobufs}}
  end

  test "a frame that is larger than the send queue is written if nothing waits" do
    {network, peer} = connect(self(), max_send_queue: 1_000)
    {_network, sender} = connected(network, peer)
    body = String.duplicate("x", 100_000)
    assert :ok = Sender.write(sender, [%Frame{command: :send, body: body}], :sync)
  end

  test "with inet_backend: :socket a send time-out is a time-out" do
    opts = [inet_backend: :socket, send_timeout: 200]
    {network, peer} = connect(self(), opts)
    {_network, sender} = connected(network, peer)
    large = %Frame{command: :send, body: String.duplicate("x", 20_000_000)}

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        for _n <- 1..2, do: Sender.write(sender, [large])
        assert_receive {:"$gen_cast", {:barytherium, :disconnect, :timeout}}, 10_000
      end)

    refute log =~ "xxx"
  end

  test "with inet_backend: :socket it connects and receives" do
    listener = Peer.listen(:tcp)
    opts = [{:inet_backend, :socket}]
    {:ok, _network} = Network.start_link(self(), "127.0.0.1", Peer.port(listener), opts)
    peer = Peer.accept(listener)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    Peer.send(peer, "CONNECTED\n\n\0")
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
  end

  test "if one address of a name refuses, the next one is tried" do
    # Only the IPv6 address of the name has a listener.
    options = [:binary, :inet6, active: false, ip: {0, 0, 0, 0, 0, 0, 0, 1}, ipv6_v6only: true]
    {:ok, listener} = :gen_tcp.listen(0, options)

    if match?({:ok, _}, :inet.gethostbyname(~c"localhost", :inet6)) do
      {:ok, _network} = Network.start_link(self(), "localhost", Peer.port(listener))
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    end
  end

  test "empty writes do not delay heart-beats" do
    {network, peer} = connect(self())
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    connect = %Frame{command: :connect, headers: [{"heart-beat", "200,0"}]}
    Sender.write(sender, [connect])
    assert {:ok, "CONNECT\n" <> _rest} = Peer.recv(peer)
    Peer.send(peer, "CONNECTED\nversion:1.2\nheart-beat:0,200\n\n\0")
    writing = spawn_link(fn -> write_nothing(sender) end)
    # The writes come far more often than the heart-beats.
    for _n <- 1..3, do: assert({:ok, "\n"} = Peer.recv(peer, 1))
    Process.unlink(writing)
    Process.exit(writing, :kill)
    GenServer.stop(network)
  end

  defp write_nothing(sender) do
    Sender.write(sender, [])
    Process.sleep(10)
    write_nothing(sender)
  end

  for transport <- Peer.transports() do
    test "close/2 before CONNECTED ends the connection at once (#{transport})" do
      listener = Peer.listen(unquote(transport))
      accepting = Task.async(fn -> accept_for_test(listener, unquote(transport)) end)
      opts = Peer.options(unquote(transport))
      {:ok, network} = Network.start_link(self(), "127.0.0.1", Peer.port(listener), opts)
      _peer = Task.await(accepting)
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
      assert Network.close(network, 60_000) == :ok
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
    end

    test "a peer that was heard is not late, however late it is heard (#{transport})" do
      listener = Peer.listen(unquote(transport))
      accepting = Task.async(fn -> accept_for_test(listener, unquote(transport)) end)
      opts = [heartbeat_receive_allowance: 100] ++ Peer.options(unquote(transport))
      {:ok, network} = Network.start_link(self(), "127.0.0.1", Peer.port(listener), opts)
      peer = Task.await(accepting)
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
      headers = [{"heart-beat", "0,200"}]
      Sender.write(sender, [%Frame{command: :connect, headers: headers}])
      {:ok, _connect} = Peer.recv(peer)
      Peer.send(peer, "CONNECTED\nversion:1.2\nheart-beat:200,0\n\n\0")
      assert_receive {:"$gen_cast", {:barytherium, :frames, _connected}}
      %{receiver_pid: receiver} = :sys.get_state(network)
      :sys.suspend(receiver)
      for _beat <- 1..10, do: Peer.send(peer, "\n") && Process.sleep(60)
      Peer.send(peer, "MESSAGE\n\nx\0")
      :sys.resume(receiver)
      assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{body: "x"}], ^sender}}}
    end
  end

  # An alert is behind it. What is read of a record at a time must not be dropped with the rest.
  for transport <- [:tls, :ssl, :ws, :wss, :wss_otp] do
    test "what the peer sent in one segment with its end is delivered (#{transport})" do
      listener = Peer.listen(unquote(transport))
      {proxy, port} = Barytherium.FaultProxy.start!(Peer.port(listener))
      opts = Peer.options(unquote(transport))
      accepting = Task.async(fn -> accept_for_test(listener, unquote(transport)) end)
      {:ok, network} = Network.start_link(self(), "127.0.0.1", port, opts)
      peer = Task.await(accepting)
      connected(network, peer)
      Barytherium.FaultProxy.set(proxy, :until_closed)
      large = String.duplicate("x", 40_000)
      for n <- 1..20, do: Peer.send(peer, "MESSAGE\nn:#{n}\n\n#{large}\0")
      Peer.close(peer)
      assert delivered([]) == Enum.map(1..20, &to_string/1)
    end
  end

  defp accept_for_test(listener, transport) do
    [owner | _] = Process.get(:"$callers")
    peer = Peer.accept(listener, transport)
    :ok = peer |> Peer.socket() |> Barytherium.Connection.give(owner)
    peer
  end

  defp delivered(numbers) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
        delivered(numbers ++ for(frame <- frames, do: Frame.header(frame, "n")))

      {:"$gen_cast", {:barytherium, :disconnect, :closed}} ->
        numbers
    end
  end
end
