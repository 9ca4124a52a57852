defmodule Barytherium.Network.EndingTest do
  @moduledoc "How connections end when more than one thing happens at once."
  use Barytherium.ReceiverCase, async: false

  alias Barytherium.Network
  alias Barytherium.Network.Sender

  defp connect(callback \\ self(), opts \\ [], transport \\ :tcp) do
    listener = Peer.listen(transport)
    {:ok, network} = Network.start_link(callback, {127, 0, 0, 1}, Peer.port(listener), opts)
    {network, Peer.accept(listener)}
  end

  defp sender do
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    sender
  end

  # What was cast to this process until the disconnect, and what came after it.
  defp until_disconnect(frames \\ 0) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {more, _sender}}} ->
        until_disconnect(frames + length(more))

      {:"$gen_cast", {:barytherium, :disconnect, reason}} ->
        {frames, reason}
    after
      10_000 -> flunk("no disconnect")
    end
  end

  # Takes everything that is cast to it, the first frames only when it is told to.
  def slow_callback(test) do
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    headers = [{"heart-beat", "50,0"}]
    Sender.write(sender, [%Frame{command: :connect, headers: headers}])
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
    send(test, {:sender, sender})
    assert_receive :take, 10_000
    send(test, {:took, until_disconnect()})
    # Its end would be the network's, and so the test's.
    Process.sleep(:infinity)
  end

  test "what the peer sent before it closed is delivered, though heart-beats fail" do
    test = self()
    callback = spawn_link(fn -> slow_callback(test) end)
    {network, peer} = connect(callback, high_water_mark: 2)
    assert {:ok, "CONNECT" <> _headers} = Connection.recv(peer, 0, 2_000)
    Peer.send(peer, "CONNECTED\nversion:1.2\nheart-beat:0,50\n\n\0")
    assert_receive {:sender, sender}

    for n <- 1..40 do
      Peer.send(peer, "MESSAGE\nn:#{n}\n\n\0")
      eventually(fn -> Network.stats(network).frames == min(n, 2) + 1 end)
    end

    Peer.send(peer, "ERROR\nmessage:bye\n\n\0")
    # Unread heart-beats make this a reset, which would take the frames along.
    {:ok, _beats} = Connection.recv(peer, 0, 1_000)
    Peer.close(peer)
    # Long enough for some heart-beats to fail; to ask the sender would put them off.
    assert Process.alive?(sender)
    refute_receive {:took, _frames}, 500
    send(callback, :take)
    assert_receive {:took, {41, :closed}}, 5_000
  end

  test "a peer that does not read is a time-out, after which no frame comes" do
    options = [send_timeout: 100, send_buffer: 4096, first_frame_timeout: 60_000]
    {_network, peer} = connect(self(), options)
    sender = sender()
    Peer.send(peer, connected_bytes())
    frames = :binary.copy("MESSAGE\n\n" <> String.duplicate("x", 500) <> "\0", 100)
    pump = fn pump -> if Connection.send(peer, frames) == :ok, do: pump.(pump) end
    spawn(fn -> pump.(pump) end)
    large = %Frame{command: :send, body: String.duplicate("x", 20_000_000)}
    # What is too much is found when there is more to write.
    Sender.write(sender, [large])
    Sender.write(sender, [%Frame{command: :send, body: "more"}])
    assert {frames, :timeout} = until_disconnect()
    assert frames > 0
    refute_receive {:"$gen_cast", _message}, 200
  end

  test "a TLS peer that does not read holds nobody up" do
    options = [secure: true, verify: :verify_none, send_buffer: 4096, first_frame_timeout: 300]
    {network, _peer} = connect(self(), options, :tls)
    large = %Frame{command: :send, body: String.duplicate("x", 20_000_000)}
    Sender.write(sender(), [large])
    assert {0, :timeout} = until_disconnect()
    # It answers, although the socket is not closed as long as the peer does not read.
    assert %{frames: 0} = Network.stats(network)
  end

  test "a network that is stopped takes its sender along" do
    {network, _peer} = connect()
    sender = sender()
    monitor = Process.monitor(sender)
    GenServer.stop(network)
    assert_receive {:DOWN, ^monitor, :process, ^sender, :shutdown}
  end

  test "what is written before CONNECTED waits for it, and is escaped by its version" do
    {_network, peer} = connect()
    sender = sender()
    send = %Frame{command: :send, headers: [{"x", "a:b"}]}
    Sender.write(sender, [%Frame{command: :connect}, send])
    Sender.write(sender, [send])
    # Only 1.2 could escape this one.
    Sender.write(sender, [%Frame{command: :send, headers: [{"x", "two\nlines"}]}])
    Sender.write(sender, [%Frame{command: :send, headers: [{"x", "c"}]}])
    # It has taken them all by now.
    :sys.get_state(sender)
    assert {:ok, "CONNECT\n\n\0"} = Connection.recv(peer, 0, 2_000)
    assert {:error, :timeout} = Connection.recv(peer, 0, 50)
    Peer.send(peer, "CONNECTED\n\n\0")
    assert [%Frame{command: :connected}] = receive_any()
    written = "SEND\nx:a:b\n\n\0SEND\nx:a:b\n\n\0SEND\nx:c\n\n\0"
    assert {:ok, ^written} = Connection.recv(peer, byte_size(written), 2_000)
  end

  test "heart-beats beyond all measure end nothing" do
    for header <- ["99999999999999999999999,0", "0,99999999999"] do
      {network, peer} = connect()
      headers = [{"heart-beat", "5000,5000"}]
      Sender.write(sender(), [%Frame{command: :connect, headers: headers}])
      assert {:ok, "CONNECT" <> _headers} = Connection.recv(peer, 0, 2_000)
      Peer.send(peer, "CONNECTED\nversion:1.2\nheart-beat:#{header}\n\n\0MESSAGE\n\n\0")
      assert [%Frame{command: :connected}] = receive_any()
      assert [%Frame{command: :message}] = receive_any()
      assert Process.alive?(network)
      Peer.close(peer)
      assert {0, :closed} = until_disconnect()
    end
  end

  test "a listener that is a name gets its frames before the disconnect" do
    Process.register(self(), __MODULE__)
    {socket, peer} = Peer.pair()
    Peer.send(peer, "ERROR\n\n\0MESSAGE\n\n\0GARBAGE")
    {:ok, receiver} = Receiver.start_link(socket, __MODULE__, self(), self())
    monitor = Process.monitor(receiver)
    assert_receive {:DOWN, ^monitor, :process, ^receiver, :normal}
    assert {2, :parse_error} = until_disconnect()
  end

  test "a connection whose peer is gone before the loop starts reads nobody else's" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)

    for _n <- 1..500 do
      {socket, peer} = Peer.pair()
      Peer.close(peer)
      loop = Task.async(fn -> Receiver.loop(loop_state(socket)) end)
      # It is likely to get the number of a descriptor that was just closed.
      {:ok, other} = Connection.connect({127, 0, 0, 1}, port)
      peer = Peer.accept(listener)
      Peer.send(other, "MESSAGE\n\nnot yours\0")
      assert {:ok, "MESSAGE\n\nnot yours\0"} = Connection.recv(peer, 0, 2_000)
      Task.await(loop)
      assert {0, :closed} = until_disconnect()
      Enum.each([other, peer], &Peer.close/1)
    end
  end

  defp loop_state(socket) do
    test = hd(Process.get(:"$callers"))

    %{
      socket: socket,
      listener_pid: test,
      network_pid: test,
      sender_pid: test,
      parse_state: Frame.parse_state(),
      hb_recv: 0
    }
  end

  defp receive_any do
    assert_receive {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}}
    frames
  end
end
