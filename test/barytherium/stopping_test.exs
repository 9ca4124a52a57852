defmodule Barytherium.StoppingTest do
  @moduledoc "What becomes of frames that were written, and of processes, when somebody stops."
  use ExUnit.Case, async: true

  alias Barytherium.{Connection, Frame, Network, Peer, TestBroker}
  alias Barytherium.Network.{Receiver, Sender}

  @moduletag capture_log: true

  defp connect(callback, opts \\ []) do
    listener = Peer.listen(:tcp)
    {:ok, network} = Network.start_link(callback, {127, 0, 0, 1}, Peer.port(listener), opts)
    {network, Peer.accept(listener)}
  end

  defp connected(network, peer) do
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Sender.write(sender, [%Frame{command: :connect}])
    assert {:ok, "CONNECT\n\n\0"} = Peer.recv(peer)
    Peer.send(peer, "CONNECTED\nversion:1.2\n\n\0")
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
    {network, sender}
  end

  # Everything that comes until the end.
  defp read_all(peer, read \\ []) do
    case Connection.recv(peer, 0, 5_000) do
      {:ok, data} -> read_all(peer, [read, data])
      {:error, reason} -> {IO.iodata_to_binary(read), reason}
    end
  end

  # A callback process that is connected, does what it is told, and then ends.
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
    test "what was written when the callback process ends is sent, and then DISCONNECT (#{reason})" do
      ack = &%Frame{command: :ack, headers: [{"id", &1}]}
      write = fn sender -> for n <- 1..500, do: Sender.write(sender, [ack.(n)]) end
      callback = callback(self(), write)
      assert_receive {:acted, network, peer}
      monitor = Process.monitor(network)

      if unquote(reason) == :kill,
        do: Process.exit(callback, :kill),
        else: send(callback, {:exit, unquote(reason)})

      written = for n <- 1..500, into: "", do: "ACK\nid:#{n}\n\n\0"
      assert read_all(peer) == {written <> "DISCONNECT\n\n\0", :closed}
      assert_receive {:DOWN, ^monitor, :process, ^network, _reason}
    end
  end

  test "GenServer.stop/1 of the network does the same, and logs no crash" do
    {network, peer} = connect(self())
    {network, sender} = connected(network, peer)

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        Sender.write(sender, [%Frame{command: :send, body: "last"}])
        GenServer.stop(network)
      end)

    assert {"SEND\ncontent-length:4\n\nlast\0DISCONNECT\n\n\0", :closed} = read_all(peer)
    refute log =~ "terminating"
  end

  test "GenServer.stop/1 while connecting, before CONNECTED, and after the end" do
    # Nobody accepts: the connection is open for the operating system only with a backlog.
    {:ok, listener} = :gen_tcp.listen(0, [:binary, active: false, ip: {127, 0, 0, 1}])
    {:ok, port} = :inet.port(listener)
    opts = [secure: true, verify: :verify_none]
    {:ok, network} = Network.start_link(self(), "127.0.0.1", port, opts)
    assert %{frames: 0} = Network.stats(network)
    GenServer.stop(network)

    {network, peer} = connect(self())
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    GenServer.stop(network)
    assert {"", :closed} = read_all(peer)

    {network, peer} = connect(self())
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    Peer.close(peer)
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
    GenServer.stop(network)
  end

  test "a callback process that ends while connecting takes the network along" do
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
    test "writes what waits, DISCONNECT with a receipt, and waits for the broker" do
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

    test "without a CONNECT closes at once" do
      {network, peer} = connect(self())
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
      assert :ok = Network.close(network)
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      assert {"", :closed} = read_all(peer)
    end

    test "does not wait for ever" do
      {network, peer} = connect(self())
      {network, _sender} = connected(network, peer)
      assert {:error, :timeout} = Network.close(network, 50)
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      assert {"DISCONNECT\n" <> _receipt, _reason} = read_all(peer)
    end
  end

  test "a peer that accepts and says nothing is given up, and the network answers meanwhile" do
    listener = Peer.listen(:tcp)
    opts = [secure: true, verify: :verify_none, connect_timeout: 300]
    {:ok, network} = Network.start_link(self(), "127.0.0.1", Peer.port(listener), opts)
    assert %{frames: 0} = Network.stats(network)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, :timeout}}}
    assert %{is_connected: false} = :sys.get_state(network)
  end

  test "the state tells whether it is connected, as users of the package read it" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)
    state = %{opts: [], host: '127.0.0.1', port: port, callback_handler: self()}
    {:ok, network} = GenServer.start(Network, state, [])
    peer = Peer.accept(listener)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    assert %{is_connected: true} = :sys.get_state(network)
    Peer.close(peer)
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
    assert %{is_connected: false} = :sys.get_state(network)
  end

  test "stray messages end nothing" do
    {network, peer} = connect(self())
    {network, sender} = connected(network, peer)
    %{receiver_pid: receiver} = :sys.get_state(network)
    for pid <- [network, sender, receiver], do: send(pid, {:stray, make_ref()})
    Peer.send(peer, "MESSAGE\n\nhi\0")
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{body: "hi"}], _}}}
    assert :ok = Sender.write(sender, [%Frame{command: :send}], :sync)
    assert Enum.all?([network, sender, receiver], &Process.alive?/1)
  end

  test "children of a supervisor start by their specs" do
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
    # The receiver is receiving by then.
    Peer.send(peer, "CONNECTED\n\n\0")
    assert_receive {:"$gen_call", from, {:connected_frame, _frame}}
    GenServer.reply(from, {0, 0})
    :ok = Supervisor.stop(supervisor)
    Peer.assert_closed(peer)
  end

  describe "secrets" do
    @secret "hunter2"

    test "are in no state, status, inspected frame, or crash report" do
      {network, peer} = connect(self())
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
      headers = [{"login", @secret}, {"passcode", @secret}, {"heart-beat", "0,0"}]
      connect = %Frame{command: :connect, headers: headers}
      refute inspect(connect) =~ @secret
      Sender.write(sender, [connect])
      # It waits, and is held.
      Sender.write(sender, [%Frame{command: :stomp, headers: [{"passcode", @secret}]}])
      %{receiver_pid: receiver} = state = :sys.get_state(network)
      refute inspect(state, limit: :infinity) =~ @secret

      for pid <- [network, sender, receiver] do
        refute :io_lib.format("~p", [:sys.get_status(pid)]) |> IO.iodata_to_binary() =~ @secret
      end

      Process.flag(:trap_exit, true)

      log =
        ExUnit.CaptureLog.capture_log(fn ->
          monitor = Process.monitor(sender)
          :sys.replace_state(sender, fn _state -> :broken end)
          Sender.write(sender, [connect])
          assert_receive {:DOWN, ^monitor, :process, ^sender, _reason}
          assert_receive {:EXIT, ^network, _reason}
        end)

      assert log =~ "terminating"
      refute log =~ @secret
      Peer.close(peer)
    end

    test "of TLS are not in the network's state" do
      listener = Peer.listen(:tcp)
      opts = [secure: true, verify: :verify_none, password: @secret, connect_timeout: 100]
      {:ok, network} = Network.start_link(self(), "127.0.0.1", Peer.port(listener), opts)
      refute inspect(:sys.get_status(network), limit: :infinity) =~ @secret
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, :timeout}}}
    end
  end

  describe "a mistake in the arguments is the caller's, by name:" do
    for {mistake, args, message} <- [
          {"a misspelt option", ["localhost", 1, [high_watermrk: 8]], ":high_watermark"},
          {"an option that the loop relies on", ["localhost", 1, [active: true]], ":active"},
          {"a size beyond all measure", ["localhost", 1, [buffer: 2 ** 70]], ":buffer"},
          {"a port as a string", ["localhost", "61613", []], "\"61613\""},
          {"a port that is too high", ["localhost", 70_000, []], "70000"},
          {"no host", ["", 1, []], "not a host"},
          {"a host with a NUL", ["a\0b", 1, []], "not a host"},
          {"a path that is too long", [{:local, String.duplicate("x", 200)}, 0, []], "path"},
          {"options that are no list", ["localhost", 1, %{}], "not a list"}
        ] do
      test mistake do
        [host, port, opts] = unquote(Macro.escape(args))

        error = assert_raise ArgumentError, fn -> Network.start_link(self(), host, port, opts) end

        assert Exception.message(error) =~ unquote(message)
      end
    end

    test "a callback process that is nil, or a name that nobody has" do
      for callback <- [nil, :nobody_has_this_name, "pid"] do
        assert_raise ArgumentError, ~r/callback process/, fn ->
          Network.start_link(callback, "localhost", 1)
        end
      end
    end

    test "of the receive loop" do
      {socket, _peer} = Peer.pair()
      {:ok, udp} = :gen_udp.open(0)
      loop = %{socket: socket, listener_pid: self(), network_pid: self(), sender_pid: self()}

      for {change, message} <- [
            {%{hb_recv: -1}, "hb_recv"},
            {%{hb_recv: 1.5}, "hb_recv"},
            {%{listener_pid: {:name, :other@node}}, "not distributed"},
            {%{socket: udp}, "no TCP socket"},
            {%{options: [max_headrs: 1]}, ":max_headers"}
          ] do
        error = assert_raise ArgumentError, fn -> Receiver.loop(Map.merge(loop, change)) end
        assert Exception.message(error) =~ message
      end

      assert_raise ArgumentError, ~r/:max_body/, fn -> Frame.parse_state(max_bdy: 1) end
    end
  end

  test "sockets of the other backend are connected to as well" do
    listener = Peer.listen(:tcp)
    opts = [{:inet_backend, :socket}]
    {:ok, _network} = Network.start_link(self(), "127.0.0.1", Peer.port(listener), opts)
    peer = Peer.accept(listener)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    Peer.send(peer, "CONNECTED\n\n\0")
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
  end

  test "an address of a name that does not answer is not the last one" do
    # Of the name's addresses, only that of IPv6 has a listener.
    options = [:binary, :inet6, active: false, ip: {0, 0, 0, 0, 0, 0, 0, 1}, ipv6_v6only: true]
    {:ok, listener} = :gen_tcp.listen(0, options)

    if match?({:ok, _}, :inet.gethostbyname('localhost', :inet6)) do
      {:ok, _network} = Network.start_link(self(), "localhost", Peer.port(listener))
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    end
  end

  test "what was agreed and not kept: writes of nothing put off no heart-beat" do
    {network, peer} = connect(self())
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    connect = %Frame{command: :connect, headers: [{"heart-beat", "200,0"}]}
    Sender.write(sender, [connect])
    assert {:ok, "CONNECT\n" <> _rest} = Peer.recv(peer)
    Peer.send(peer, "CONNECTED\nversion:1.2\nheart-beat:0,200\n\n\0")
    writing = spawn_link(fn -> write_nothing(sender) end)
    # It writes far more often than that.
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
end
