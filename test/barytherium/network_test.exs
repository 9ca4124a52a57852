defmodule Barytherium.NetworkTest do
  use ExUnit.Case, async: true

  import Barytherium.ReceiverCase, only: [eventually: 1]
  import Barytherium.Untyped

  alias Barytherium.{Connection, Frame, Network, Peer}
  alias Barytherium.Network.Sender

  @connect "CONNECT\nheart-beat:0,0\n\n\0"

  defp connect(host, opts \\ []) do
    listener = Peer.listen(if opts[:secure], do: :tls, else: :tcp)
    {:ok, network} = Network.start_link(self(), host, Peer.port(listener), opts)
    peer = Peer.accept(listener)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    {network, sender, peer}
  end

  # Connects with the `heart-beat` headers of both sides.
  defp connect_with_heart_beats(client, server) do
    {network, sender, peer} = connect("127.0.0.1")
    Sender.write(sender, [%Frame{command: :connect, headers: [{"heart-beat", client}]}])
    Peer.send(peer, "CONNECTED\nversion:1.2\nheart-beat:#{server}\n\n\0")

    assert_receive {:"$gen_cast",
                    {:barytherium, :frames, {[%Frame{command: :connected}], ^sender}}}

    {network, sender, peer}
  end

  for {name, host} <- [
        charlist: Macro.escape(~c"localhost"),
        string: "localhost",
        address: Macro.escape({127, 0, 0, 1})
      ] do
    test "connects to a #{name}" do
      {_network, sender, peer} = connect(unquote(host))
      assert :ok = Sender.write(sender, [%Frame{command: :connect, headers: [{"host", "/"}]}])
      assert {:ok, "CONNECT\nhost:/\n\n\0"} = Connection.recv(peer, 0, 2_000)
    end
  end

  test "connects with TLS" do
    {_network, sender, peer} = connect("localhost", secure: true, verify: :verify_none)
    Sender.write(sender, [%Frame{command: :connect, headers: [{"heart-beat", "0,0"}]}])
    assert {:ok, @connect} = Connection.recv(peer, 0, 2_000)
    Peer.send(peer, "CONNECTED\n\n\0")
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{}], ^sender}}}
  end

  test "connects to a Unix domain socket" do
    path = Barytherium.Directory.path()
    on_exit(fn -> File.rm(path) end)
    {:ok, listener} = :gen_tcp.listen(0, [:binary, active: false, ip: {:local, path}])
    {:ok, _network} = Network.start_link(self(), {:local, path}, 0)
    {:ok, peer} = :gen_tcp.accept(listener)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Peer.send(peer, "CONNECTED\n\n\0")
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{}], ^sender}}}
  end

  test "connects over IPv6" do
    options = [:binary, :inet6, active: false, ip: {0, 0, 0, 0, 0, 0, 0, 1}]
    {:ok, listener} = :gen_tcp.listen(0, options)
    address = {0, 0, 0, 0, 0, 0, 0, 1}
    {:ok, _network} = Network.start_link(self(), address, Peer.port(listener), [:inet6])
    {:ok, peer} = :gen_tcp.accept(listener)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Peer.send(peer, "CONNECTED\n\n\0")
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{}], ^sender}}}
  end

  test "stats count what was received, also after the end" do
    {network, _sender, peer} = connect("127.0.0.1")
    bytes = "CONNECTED\n\n\0MESSAGE\n\n1\0MESSAGE\n\n2\0"
    Peer.send(peer, bytes)
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{body: "1"} | _more], _}}}
    Peer.close(peer)
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
    size = byte_size(bytes)
    assert %{frames: 3, bytes: ^size, pauses: 0} = stats = Network.stats(network)
    assert stats.last_activity <= System.monotonic_time(:millisecond)
    assert stats.slices > 0 and is_integer(stats.waits) and is_integer(stats.parse_time)
  end

  test "reports why it could not connect" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)
    :ok = :gen_tcp.close(listener)
    {:ok, _network} = Network.start_link(self(), "127.0.0.1", port)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, :econnrefused}}}

    {:ok, _network} = Network.start_link(self(), "no.such.host.invalid", port)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, :nxdomain}}}, 10_000
  end

  test "a mistake in the options raises in the caller" do
    assert_raise ArgumentError, ~r/:max_body/, fn ->
      Network.start_link(self(), "localhost", 1, max_body: -1)
    end
  end

  test "GenServer.start/2 takes the documented state" do
    listener = Peer.listen(:tcp)
    state = %{callback_handler: self(), host: "localhost", port: Peer.port(listener), opts: []}
    {:ok, _network} = GenServer.start(Network, state)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
  end

  test "there is only one disconnect, and nothing after it, whatever sender and receiver report" do
    {network, sender, peer} = connect("127.0.0.1")
    Peer.close(peer)
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
    GenServer.cast(network, {:barytherium, :disconnect, :timeout})
    assert :ok = Sender.write(sender, [%Frame{command: :disconnect}])
    # When the network answers, everything that it had sent has arrived.
    :sys.get_state(network)
    refute_received {:"$gen_cast", _message}
  end

  test "ends with its callback process" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)
    callback = spawn(fn -> Process.sleep(:infinity) end)
    state = %{callback_handler: callback, host: "localhost", port: port, opts: []}
    {:ok, network} = GenServer.start(Network, state)
    peer = Peer.accept(listener)
    monitor = Process.monitor(network)
    Process.exit(callback, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^network, :shutdown}
    Peer.assert_closed(peer)
  end

  test "killing it closes the connection" do
    Process.flag(:trap_exit, true)
    {network, _sender, peer} = connect("127.0.0.1")
    Process.exit(network, :kill)
    Peer.assert_closed(peer)
  end

  test "heart-beats are sent when nothing else is, and are expected from the peer" do
    {_network, sender, peer} = connect_with_heart_beats("100,400", "400,100")
    assert {:ok, "CONNECT\n" <> _headers} = Connection.recv(peer, 0, 2_000)
    for _n <- 1..3, do: assert({:ok, "\n"} = Connection.recv(peer, 1, 2_000))
    # This peer sends no heart-beats.
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :timeout}}
    refute_received {:"$gen_cast", _message}
    assert :ok = Sender.write(sender, [])
  end

  test "frames are written in one send" do
    {_network, sender, peer} = connect_with_heart_beats("0,0", "0,0")
    assert {:ok, @connect} = Connection.recv(peer, 0, 2_000)
    ack = &%Frame{command: :ack, headers: [{"id", &1}]}
    Sender.write(sender, [ack.("a:1"), ack.("a:2")])
    written = "ACK\nid:a\\c1\n\n\0ACK\nid:a\\c2\n\n\0"
    assert {:ok, ^written} = Connection.recv(peer, byte_size(written), 2_000)
  end

  # Beginner's mistakes, and a part of the message that each gets.
  for {mistake, {message, frame}} <- [
        "an unknown command": {":unknown is not a STOMP command", %{command: :unknown}},
        "a command as a string": {"write :send instead of \"SEND\"", %{command: "SEND"}},
        "a header without a name": {"has no name", %{headers: [{"", "v"}]}},
        "a header that is an atom": {"not a {name, value}", %{headers: [:persistent]}},
        "headers as a map": {"not a list of {name, value}", %{headers: %{"a" => "b"}}},
        "a value that is no string": {"value of header \"k\"", %{headers: [{"k", {1, 2}}]}},
        "a name that is no string": {"the name of a header", %{headers: [{{1}, "v"}]}},
        "a body that is no binary": {"neither a binary nor iodata", %{body: 7}},
        "a wrong content-length":
          {"its body has 2 bytes", %{headers: [{"content-length", 3}], body: "hi"}},
        "a line end in CONNECT":
          {"header \"passcode\"", %{command: :connect, headers: [{"passcode", "a\nb"}]}}
      ] do
    test "#{mistake} raises in the caller of write, and is named" do
      {_network, sender, _peer} = connect("127.0.0.1")
      frame = struct!(%Frame{command: :send}, unquote(Macro.escape(frame)))
      error = assert_raise ArgumentError, fn -> Sender.write(sender, [frame]) end
      assert Exception.message(error) =~ unquote(message)
      refute Exception.message(error) =~ "a\nb"
    end
  end

  test "values with an obvious meaning are accepted" do
    {_network, sender, peer} = connect_with_heart_beats("0,0", "0,0")
    assert {:ok, @connect} = Connection.recv(peer, 0, 2_000)
    headers = [{"login", nil}, {:priority, 7}, {"ack", :auto}]
    Sender.write(sender, [%Frame{command: :send, headers: headers, body: ["a", ?b]}])
    Sender.write(sender, [%Frame{command: :send, body: nil}])
    written = "SEND\nlogin:\npriority:7\nack:auto\ncontent-length:2\n\nab\0SEND\n\n\0"
    assert {:ok, ^written} = Connection.recv(peer, byte_size(written), 2_000)
  end

  test "a sender that is not a pid raises in the caller" do
    assert_raise ArgumentError, ~r/the sender is nil/, fn -> Sender.write(untyped(nil), []) end
  end

  test "a write that the negotiated version cannot escape is dropped and logged" do
    {_network, sender, peer} = connect("127.0.0.1")
    Sender.write(sender, [%Frame{command: :connect}])
    Peer.send(peer, "CONNECTED\nversion:1.0\n\n\0")
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
    assert {:ok, "CONNECT\n\n\0"} = Connection.recv(peer, 0, 2_000)

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        frames = [%Frame{command: :begin}, %Frame{command: :send, headers: [{"x-key", "a\nb"}]}]
        assert {:error, :unescapable} = Sender.write(sender, frames, :sync)
      end)

    assert log =~ "dropped a write (begin, send)"
    assert log =~ "x-key"
    assert :ok = Sender.write(sender, [%Frame{command: :ack, headers: [{"id", "1"}]}], :sync)
    assert {:ok, "ACK\nid:1\n\n\0"} = Connection.recv(peer, 0, 2_000)
  end

  test "a peer that does not read ends the connection when the send queue is full" do
    {network, sender, _peer} = connect("127.0.0.1", max_send_queue: 1_000_000, send_buffer: 4096)
    large = %Frame{command: :send, body: String.duplicate("x", 600_000)}

    ExUnit.CaptureLog.capture_log(fn ->
      for _n <- 1..20, do: Sender.write(sender, [large])
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :enobufs}}, 5_000
    end)

    assert {:error, _reason} = Sender.write(sender, [large], :sync)
    refute Network.stats(network).last_activity
  end

  test "stats count what waits to be written, and what was written" do
    {network, sender, peer} = connect("127.0.0.1", first_frame_timeout: 60_000)
    assert %{frames_written: 0, bytes_waiting: 0} = Network.stats(network)
    large = %Frame{command: :send, body: String.duplicate("x", 20_000_000)}
    # The first one is being written.
    for _n <- 1..2, do: Sender.write(sender, [large])

    eventually(fn ->
      stats = Network.stats(network)
      stats.frames_written == 1 and stats.bytes_waiting in 20_000_000..20_001_000
    end)

    reading = Task.async(fn -> read_all(peer) end)
    assert :ok = Sender.write(sender, [%Frame{command: :send}], :sync)
    assert %{frames_written: 3, bytes_waiting: 0} = Network.stats(network)
    Task.shutdown(reading)
  end

  defp read_all(peer), do: match?({:ok, _}, Connection.recv(peer, 0, :infinity)) && read_all(peer)
end
