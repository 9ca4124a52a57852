defmodule Barytherium.Network.EndingTest do
  @moduledoc "How connections end when more than one thing happens at once."
  use Barytherium.ReceiverCase, async: false

  import Barytherium.NetworkCase

  alias Barytherium.Network
  alias Barytherium.Network.Sender

  defp sender do
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    sender
  end

  # The number of frames before the disconnect, and its reason.
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

  # Takes no frames after CONNECTED until it is told to. Then it takes everything.
  def slow_callback(test) do
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    headers = [{"heart-beat", "50,0"}]
    Sender.write(sender, [%Frame{command: :connect, headers: headers}])
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
    send(test, {:sender, sender})
    assert_receive :take, 10_000
    send(test, {:took, until_disconnect()})
    # If it ended, the network would end too, and with it the test.
    Process.sleep(:infinity)
  end

  for transport <- [:tcp, :tls, :ssl, :ws, :wss] do
    test "what the peer sent before it closed is delivered, although sending heart-beats fails: #{transport}" do
      test = self()
      callback = spawn_link(fn -> slow_callback(test) end)
      opts = [high_water_mark: 2] ++ Peer.options(unquote(transport))
      {network, peer} = connect(callback, opts, unquote(transport))
      assert {:ok, "CONNECT" <> _headers} = Peer.recv(peer, 0, 2_000)
      Peer.send(peer, "CONNECTED\nversion:1.2\nheart-beat:0,50\n\n\0")
      assert_receive {:sender, sender}

      for n <- 1..40 do
        Peer.send(peer, "MESSAGE\nn:#{n}\n\n\0")
        eventually(fn -> Network.stats(network).frames == min(n, 2) + 1 end)
      end

      Peer.send(peer, "ERROR\nmessage:bye\n\n\0")
      # Unread heart-beats would turn the close into a reset, which would discard the frames.
      {:ok, _beats} = Peer.recv(peer, 0, 1_000)
      Peer.close(peer)
      # Long enough for some heart-beats to fail. A call to the sender would delay them.
      assert Process.alive?(sender)
      refute_receive {:took, _frames}, 500
      send(callback, :take)
      assert_receive {:took, {41, :closed}}, 5_000
    end
  end

  for transport <- [:tcp, :tls, :ssl, :ws, :wss] do
    test "a peer that does not read is a time-out, and no frame comes after it: #{transport}" do
      options = [send_timeout: 100, send_buffer: 4096, first_frame_timeout: 60_000]
      options = options ++ Peer.options(unquote(transport))
      {_network, peer} = connect(self(), options, unquote(transport))
      sender = sender()
      Peer.send(peer, connected_bytes())
      frames = :binary.copy("MESSAGE\n\n" <> String.duplicate("x", 500) <> "\0", 100)
      pump = fn pump -> if Peer.try_send(peer, frames) == :ok, do: pump.(pump) end
      spawn(fn -> pump.(pump) end)
      large = %Frame{command: :send, body: String.duplicate("x", 20_000_000)}
      # The socket's driver takes the first write. The next one waits for it, and times out.
      Sender.write(sender, [large])
      Sender.write(sender, [%Frame{command: :send, body: "more"}])
      assert {frames, :timeout} = until_disconnect()
      assert frames > 0
      refute_receive {:"$gen_cast", _message}, 200
    end
  end

  for transport <- [:tcp, :tls, :ssl, :ws, :wss] do
    test "a peer that does not read does not block the network process: #{transport}" do
      options = [send_buffer: 4096, first_frame_timeout: 300]
      options = options ++ Peer.options(unquote(transport))
      {network, _peer} = connect(self(), options, unquote(transport))
      large = %Frame{command: :send, body: String.duplicate("x", 20_000_000)}
      Sender.write(sender(), [large])
      assert {0, :timeout} = until_disconnect()
      # It answers although the socket cannot be closed until the peer reads.
      assert %{frames: 0} = Network.stats(network)
    end
  end

  test "stopping a network stops its sender" do
    {network, _peer} = connect()
    sender = sender()
    monitor = Process.monitor(sender)
    GenServer.stop(network)
    assert_receive {:DOWN, ^monitor, :process, ^sender, :shutdown}
  end

  test "frames written before CONNECTED wait for it, and are escaped by its version" do
    {_network, peer} = connect()
    sender = sender()
    send = %Frame{command: :send, headers: [{"x", "a:b"}]}
    Sender.write(sender, [%Frame{command: :connect}, send])
    Sender.write(sender, [send])
    # 1.0 cannot escape this one, so it is dropped.
    Sender.write(sender, [%Frame{command: :send, headers: [{"x", "two\nlines"}]}])
    Sender.write(sender, [%Frame{command: :send, headers: [{"x", "c"}]}])
    # When the sender answers, it has taken all of them.
    :sys.get_state(sender)
    assert {:ok, "CONNECT\n\n\0"} = Peer.recv(peer, 0, 2_000)
    assert {:error, :timeout} = Peer.recv(peer, 0, 50)
    Peer.send(peer, "CONNECTED\n\n\0")
    assert [%Frame{command: :connected}] = receive_any()
    written = "SEND\nx:a:b\n\n\0SEND\nx:a:b\n\n\0SEND\nx:c\n\n\0"
    assert {:ok, ^written} = Peer.recv(peer, byte_size(written), 2_000)
  end

  test "huge heart-beat values do not end the connection" do
    for header <- ["99999999999999999999999,0", "0,99999999999"] do
      {network, peer} = connect()
      headers = [{"heart-beat", "5000,5000"}]
      Sender.write(sender(), [%Frame{command: :connect, headers: headers}])
      assert {:ok, "CONNECT" <> _headers} = Peer.recv(peer, 0, 2_000)
      Peer.send(peer, "CONNECTED\nversion:1.2\nheart-beat:#{header}\n\n\0MESSAGE\n\n\0")
      assert [%Frame{command: :connected}] = receive_any()
      assert [%Frame{command: :message}] = receive_any()
      assert Process.alive?(network)
      Peer.close(peer)
      assert {0, :closed} = until_disconnect()
    end
  end

  test "a listener given by name gets its frames before the disconnect" do
    Process.register(self(), __MODULE__)
    {socket, peer} = Peer.pair()
    Peer.send(peer, "MESSAGE\n\n\0MESSAGE\n\n\0GARBAGE")
    state = %{connected_state(socket, self()) | listener_pid: __MODULE__}
    {:ok, receiver} = Receiver.start_loop(state)
    monitor = Process.monitor(receiver)
    assert_receive {:DOWN, ^monitor, :process, ^receiver, :normal}
    assert {2, :parse_error} = until_disconnect()
  end

  for network <- [:pid, :name, :name_and_node] do
    test "a network given by #{network} is told that the socket is closed" do
      Process.register(self(), __MODULE__)
      name = %{pid: self(), name: __MODULE__, name_and_node: {__MODULE__, node()}}
      {socket, _peer} = Peer.pair()
      Connection.close(socket)
      {:ok, receiver} = Receiver.start_link(socket, self(), name[unquote(network)], self())
      assert_disconnect(:closed, receiver)
    end
  end

  test "bytes that were read are decoded and delivered before a disconnect of this side" do
    test = self()

    listener =
      spawn_link(fn ->
        receive do: (:take -> send(test, {:took, count_frames()}))
      end)

    {socket, peer} = Peer.pair()
    stats = Barytherium.Native.new_stats()
    state = %{socket: socket, listener_pid: listener, network_pid: self(), sender_pid: self()}
    state = Map.merge(state, %{hb_recv: 0, options: [high_water_mark: 1], stats: stats})
    {:ok, receiver} = Receiver.start_loop(state)
    # They are read at once, and are more than one message.
    bytes = :binary.copy("MESSAGE\n\n\0", 1_000)
    Peer.send(peer, bytes)
    eventually(fn -> Barytherium.Native.stats(stats).bytes == byte_size(bytes) end)
    Connection.close(socket)
    assert_disconnect(:closed, receiver)
    send(listener, :take)
    assert_receive {:took, 1_000}
  end

  # The number of frames that have arrived.
  defp count_frames(count \\ 0) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
        count_frames(count + length(frames))
    after
      0 -> count
    end
  end

  test "messages arrive in order in an off-heap mailbox that other processes send to" do
    test = self()
    {:ok, callback} = Task.start_link(fn -> record_order(test, 200) end)
    Process.flag(:message_queue_data, :on_heap)
    others = for _n <- 1..4, do: spawn_link(fn -> disturb(callback) end)

    for n <- 1..200 do
      {_network, peer} = connect(callback)
      Peer.send(peer, [connected_bytes(), for(m <- 1..20, do: "MESSAGE\nn:#{n}.#{m}\n\n\0")])
      Peer.close(peer)
      assert_receive {:order, order}, 30_000
      assert order == [:connect, :connected] ++ List.duplicate(:message, 20) ++ [:disconnect]
    end

    for other <- others, do: Process.unlink(other) && Process.exit(other, :kill)
  end

  # Reports the order of messages for each of `count` connections, one after the other.
  defp record_order(test, count) do
    Process.flag(:message_queue_data, :off_heap)
    for _n <- 1..count, do: send(test, {:order, order([])})
    Process.sleep(:infinity)
  end

  defp order(order) do
    receive do
      {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}} ->
        order([:connect | order])

      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
        order(Enum.reduce(frames, order, &[&1.command | &2]))

      {:"$gen_cast", {:barytherium, :disconnect, _reason}} ->
        # A message that the disconnect overtook would come now.
        late = receive(do: ({:"$gen_cast", _late} -> [:late]), after: (20 -> []))
        Enum.reverse(late ++ [:disconnect | order])

      _other ->
        order(order)
    end
  end

  # Sends as much as the callback process can take, however slow the machine is.
  defp disturb(callback) do
    {:message_queue_len, queued} = Process.info(callback, :message_queue_len)
    if queued < 500, do: for(_n <- 1..50, do: send(callback, :other))
    :erlang.yield()
    disturb(callback)
  end

  describe "in a VM of its own," do
    for kind <- ["feeds", "broker"] do
      test "System.halt/1 ends the VM while it floods itself (#{kind})" do
        assert {"halting\n", 0} = run_fixture("elixir", "halt.exs", [unquote(kind)])
      end
    end

    test "a descriptor that is too high to be polled is refused and closed" do
      shell = "ulimit -Sn 256; exec elixir \"$@\""
      {output, 0} = run_fixture("bash", ["-c", shell, "elixir"], "descriptors.exs", [])
      assert output =~ "reasons: [:emfile]"
      assert output =~ "left: 0 descriptors, 0 connections"
    end

    defp run_fixture(command, before \\ [], file, args) do
      beams = Path.join(Mix.Project.app_path(), "ebin")
      args = [command] ++ before ++ ["-pa", beams, "test/fixtures/#{file}" | args]
      # A halting VM may ignore signals that can be ignored.
      System.cmd("timeout", ["-s", "KILL", "60" | args], stderr_to_stdout: true)
    end
  end

  test "a connection that was closed before the loop starts reads no other connection's bytes" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)

    for _n <- 1..500 do
      {socket, peer} = Peer.pair()
      Peer.close(peer)
      test = self()
      loop = Task.async(fn -> Receiver.loop(connected_state(socket, test)) end)
      # This socket is likely to get the number of a descriptor that was just closed.
      {:ok, other} = Connection.connect({127, 0, 0, 1}, port)
      peer = Peer.accept(listener)
      Peer.send(other, "MESSAGE\n\nnot yours\0")
      assert {:ok, "MESSAGE\n\nnot yours\0"} = Peer.recv(peer, 0, 2_000)
      Task.await(loop)
      assert {0, :closed} = until_disconnect()
      Enum.each([other, peer], &Peer.close/1)
    end
  end

  # For a stream that has had its CONNECTED already.
  defp connected_state(socket, test),
    do: %{loop_state(socket, test) | parse_state: Frame.parse_state(), hb_recv: 0}

  defp receive_any do
    assert_receive {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}}
    frames
  end
end
