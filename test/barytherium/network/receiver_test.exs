defmodule Barytherium.Network.ReceiverTest do
  use Barytherium.ReceiverCase, async: true

  alias Barytherium.Memory

  defp message(n, body \\ "x"),
    do: "MESSAGE\nn:#{n}\ncontent-length:#{byte_size(body)}\n\n#{body}\0"

  defp numbers(frames),
    do: for(%Frame{headers: [{"n", n} | _]} <- frames, do: String.to_integer(n))

  for transport <- Peer.transports() do
    describe "over #{transport}" do
      @transport transport

      test "CONNECTED comes alone, then the network is called, then the rest in order" do
        {receiver, peer, _socket} = start_receiver(@transport)
        messages = for n <- 1..500, do: message(n)
        Peer.send(peer, [connected_bytes() | messages])

        sender = self()
        assert_receive {:"$gen_cast", {:barytherium, :frames, {[frame], ^sender}}}
        assert frame == %Frame{command: :connected, headers: [{"version", "1.2"}], body: ""}
        assert reply_heart_beats(0) == frame
        assert numbers(receive_frames(500)) == Enum.to_list(1..500)

        Peer.close(peer)
        assert_disconnect(:closed, receiver)
      end

      test "frames may arrive byte by byte" do
        {receiver, peer, _socket} = start_receiver(@transport)
        Peer.send_bytes(peer, connected_bytes())
        assert [%Frame{command: :connected}] = receive_frames()
        reply_heart_beats(0)
        Peer.send_bytes(peer, ["\r\n", message(1, "a\0b")] |> IO.iodata_to_binary())

        headers = [{"n", "1"}, {"content-length", "3"}]
        assert receive_frames() == [%Frame{command: :message, headers: headers, body: "a\0b"}]
        Peer.close(peer)
        assert_disconnect(:closed, receiver)
      end

      test "no CONNECTED in time is a time-out, even if a part of it arrives" do
        {receiver, peer, _socket} = start_receiver(@transport, first_frame_timeout: 100)
        Peer.send(peer, "CONN")
        assert_disconnect(:timeout, receiver)
        Peer.assert_closed(peer)
      end

      test "missing heart-beats are a time-out" do
        {receiver, peer, _socket} = start_connected(@transport, [], 300)
        started = System.monotonic_time(:millisecond)
        assert_disconnect(:timeout, receiver)
        assert System.monotonic_time(:millisecond) - started >= 550
        Peer.assert_closed(peer)
      end

      test "any byte keeps a connection alive, also in mid-frame" do
        opts = [heartbeat_receive_allowance: 2_000]
        {receiver, peer, _socket} = start_connected(@transport, opts, 100)

        for bytes <- ["\n", "\n", "M", "ESSAGE\n\n", "b"] do
          # Each pause is shorter than the interval and its allowance. All of them together are longer.
          Process.sleep(450)
          Peer.send(peer, bytes)
        end

        Peer.send(peer, "\0")
        assert [%Frame{command: :message, body: "b"}] = receive_frames()
        Peer.close(peer)
        assert_disconnect(:closed, receiver)
      end

      test "an ERROR as first frame is delivered alone, and ends the connection" do
        {receiver, peer, _socket} = start_receiver(@transport)

        log =
          ExUnit.CaptureLog.capture_log(fn ->
            Peer.send(peer, "ERROR\nmessage:Bad CONNECT\n\nAccess refused\0CONNECTED\n\n\0")
            assert [%Frame{command: :error, body: "Access refused"}] = receive_frames()
            assert_disconnect(:closed, receiver)
          end)

        assert log =~ ~r/127.0.0.1:\d+ refused the connection: Bad CONNECT/
        Peer.assert_closed(peer)
        refute_received {:"$gen_call", _from, _call}
      end

      test "any other first frame is a parse error" do
        {receiver, peer, _socket} = start_receiver(@transport)
        Peer.send(peer, message(1))
        assert_disconnect(:parse_error, receiver)
        Peer.assert_closed(peer)
      end

      test "when a peer closes in mid-frame, whole frames are delivered first" do
        {receiver, peer, _socket} = start_connected(@transport)
        Peer.send(peer, [message(1), message(2), "MESSAGE\nn:3\n\nhalf"])
        Peer.close(peer)
        assert numbers(receive_frames(2)) == [1, 2]
        assert_disconnect(:closed, receiver)
      end

      test "closing the socket ends the connection" do
        {receiver, peer, socket} = start_connected(@transport)
        assert :ok = Connection.close(socket)
        assert_disconnect(:closed, receiver)
        Peer.assert_closed(peer)
      end

      test "a body of 20 MB without content-length is received" do
        {receiver, peer, _socket} = start_connected(@transport)
        body = String.duplicate("0123456789", 2_000_000)
        sending = Task.async(fn -> Peer.send(peer, ["MESSAGE\n\n", body, 0]) end)
        assert [%Frame{command: :message, body: ^body}] = receive_frames()
        Task.await(sending)
        Peer.close(peer)
        assert_disconnect(:closed, receiver)
      end

      test "a binary body of 1 MB, and a frame right after it, are received" do
        {receiver, peer, _socket} = start_connected(@transport)
        body = :crypto.strong_rand_bytes(1_000_000)
        Peer.send(peer, [message(1, body), message(2)])
        assert [%Frame{body: ^body}, %Frame{body: "x"}] = receive_frames(2)
        Peer.close(peer)
        assert_disconnect(:closed, receiver)
      end

      for {name, bytes} <- [
            "a TLS alert": <<21, 3, 3, 0, 2, 2, 40>>,
            "an HTTP answer": "HTTP/1.1 400 Bad Request",
            "an unknown command": "MESSAGES",
            "a lower-case command": "message\n",
            "a header without a colon": "MESSAGE\nheader\n",
            "a header without a name": "MESSAGE\n:value\n",
            "an undefined escape": "MESSAGE\nk:a\\tb\n",
            "a bare carriage return": "MESSAGE\nk:a\rb\n",
            "a negative content-length": "MESSAGE\ncontent-length:-1\n",
            "a content-length of 30 digits":
              "MESSAGE\ncontent-length:#{String.duplicate("9", 30)}\n",
            "a body longer than its length": "MESSAGE\ncontent-length:1\n\nxy\0",
            "a body over the limit": "MESSAGE\ncontent-length:104857601\n"
          ] do
        test "#{name} is a parse error at once, after the frames before it" do
          {receiver, peer, _socket} = start_connected(@transport)
          Peer.send(peer, [message(1), message(2), unquote(bytes)])
          assert numbers(receive_frames(2)) == [1, 2]
          assert_disconnect(:parse_error, receiver)
          Peer.assert_closed(peer)
        end
      end
    end
  end

  test "by default CONNECTED may take five seconds" do
    {receiver, _peer, _socket} = start_receiver()
    started = System.monotonic_time(:millisecond)
    monitor = Process.monitor(receiver)
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :timeout}}, 10_000
    assert_receive {:DOWN, ^monitor, :process, ^receiver, :normal}
    assert System.monotonic_time(:millisecond) - started >= 5_000
  end

  test "frames before a reset are delivered" do
    for {reason, opts} <- [closed: [], econnreset: [show_econnreset: true]] do
      {socket, peer} = Peer.pair(:tcp, opts)
      {:ok, receiver} = Receiver.start_link(socket, self(), self(), self())
      Peer.send(peer, connected_bytes())
      assert [%Frame{command: :connected}] = receive_frames()
      reply_heart_beats(0)
      Peer.send(peer, [message(1), message(2)])
      assert numbers(receive_frames(2)) == [1, 2]
      Peer.reset(peer)
      assert_disconnect(reason, receiver)
    end
  end

  test "killing the receiver closes the connection" do
    Process.flag(:trap_exit, true)
    {receiver, peer, socket} = start_connected()
    Process.exit(receiver, :kill)
    assert_receive {:EXIT, ^receiver, :killed}
    Peer.assert_closed(peer)
    Connection.close(socket)
  end

  test "an idle connection holds no thread: its process waits for a message" do
    receivers =
      for _n <- 1..50 do
        {receiver, _peer, _socket} = start_connected()
        receiver
      end

    for receiver <- receivers do
      eventually(fn -> Process.info(receiver, :status) == {:status, :waiting} end)
      {:current_function, function} = Process.info(receiver, :current_function)
      assert {:gen_statem, :loop_receive, _arity} = function
    end
  end

  # Each move to a dirty thread may have to wait for a processor.
  for transport <- [:tcp, :socket] do
    test "a connection that has little to read is never read on another thread (#{transport})" do
      {receiver, peer, _socket} = start_connected(unquote(transport))
      :erlang.trace(receiver, true, [:call])
      :erlang.trace_pattern({Barytherium.Network.Parser, :read_dirty, 1}, true, [])

      # These are more messages than the high-water mark.
      for n <- 1..300 do
        Peer.send(peer, message(n))
        assert numbers(receive_frames()) == [n]
      end

      # A frame in pieces.
      for piece <- ["MESS", "AGE\nn:", "1\ncontent-length:5", "\n\nbo", "dy!", "\0"] do
        Peer.send(peer, piece)
        # The loop has to wait in mid-frame.
        Process.sleep(10)
      end

      assert [%Frame{body: "body!"}] = receive_frames()

      # These are larger than one read.
      for n <- 1..5 do
        Peer.send(peer, message(n, String.duplicate("x", 50_000)))
        assert numbers(receive_frames()) == [n]
      end

      refute_received {:trace, ^receiver, :call, _call}
      Peer.close(peer)
      assert_disconnect(:closed, receiver)
    end
  end

  test "stray messages and calls of :sys do not delay a time-out" do
    {receiver, _peer, _socket} = start_connected(:tcp, [], 200)

    looking =
      Task.async(fn ->
        send(receiver, :stray)
        send(receiver, :timeout)
        send(receiver, :deadline)
        send(receiver, {:barytherium, :room})
        send(receiver, {:barytherium, :read})
        send(receiver, {:barytherium, :turn})
        GenServer.cast(receiver, :stray)
        for _n <- 1..200, do: :sys.get_state(receiver) && Process.sleep(10)
      end)

    Process.unlink(looking.pid)
    # The task goes on for longer than this waits.
    assert_disconnect(:timeout, receiver)
    Process.exit(looking.pid, :kill)
  end

  for {share?, most} <- [{true, 8}, {false, 1}] do
    test "a kept body keeps at most #{most} times its size in memory (share_bodies: #{share?})" do
      {_receiver, peer, _socket} = start_connected(:tcp, share_bodies: unquote(share?))
      long = fn letter -> String.duplicate(letter, 100) end

      frames =
        for n <- 1..1_000 do
          body = String.duplicate("b", 65 + rem(n, 7) * rem(n, 11) * rem(n, 13))
          "MESSAGE\nheader:#{long.("h")}\n\n#{body}\0"
        end

      # The large body in the middle takes several reads.
      large = "MESSAGE\nheader:#{long.("i")}\n\n#{String.duplicate("x", 200_000)}\0"
      Peer.send(peer, [frames, large, frames])
      frames = receive_frames(2_001)

      for %Frame{headers: [{name, value}], body: body} <- frames do
        assert Memory.referenced(name) == byte_size(name)
        assert Memory.referenced(value) == byte_size(value)
        assert Memory.referenced(body) <= unquote(most) * byte_size(body)
      end

      shared = Enum.count(frames, &(Memory.referenced(&1.body) > byte_size(&1.body)))
      assert shared > 1_000 == unquote(share?)
    end
  end

  describe "loop/1" do
    test "returns when the connection ends, and leaves its caller's messages alone" do
      {socket, peer} = Peer.pair()
      test = self()

      looping =
        Task.async(fn ->
          # It would take minutes to search this mailbox for each frame.
          for n <- 1..100_000, do: send(self(), {:select, :of, :somebody, n})
          :ok = Receiver.loop(loop_state(socket, test))
          Process.info(self(), :message_queue_len)
        end)

      Peer.send(peer, connected_bytes())
      assert [%Frame{command: :connected}] = receive_frames()
      reply_heart_beats(0)

      for n <- 1..2_000 do
        Peer.send(peer, message(n))
        assert numbers(receive_frames()) == [n]
      end

      Peer.close(peer)
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      assert Task.await(looping) == {:message_queue_len, 100_000}
    end

    test "does not wait for its caller if that is the listener, as a pid or by name" do
      Process.register(self(), __MODULE__)

      for name <- [self(), __MODULE__, {__MODULE__, node()}] do
        {socket, peer} = Peer.pair()
        frames = [connected_bytes() | for(n <- 1..30_000, do: message(n))]
        spawn_link(fn -> Peer.send_all(peer, frames) end)
        test = self()
        network = spawn_link(fn -> network(test) end)
        state = %{loop_state(socket, self()) | listener_pid: name, network_pid: network}
        assert :ok = Receiver.loop(state)
        assert [%Frame{command: :connected}] = receive_frames()
        assert length(receive_frames(30_000)) == 30_000
      end
    end

    defp network(test) do
      receive do
        {:"$gen_call", from, {:connected_frame, _frame}} -> GenServer.reply(from, {0, 0})
      end

      receive do
        disconnect -> send(test, disconnect)
      end
    end

    test "raises if the parse state was used before" do
      {socket, _peer} = Peer.pair()
      {:ok, [], state} = Frame.parse_all("MESS")
      {:ok, [], _state} = Frame.parse_all("AGE", state)
      loop = %{loop_state(socket, self()) | parse_state: state}
      assert_raise ArgumentError, ~r/newest/, fn -> Receiver.loop(loop) end
    end

    test "ends with its caller" do
      {socket, peer} = Peer.pair()
      test = self()
      {caller, monitor} = spawn_monitor(fn -> Receiver.loop(loop_state(socket, test)) end)
      Peer.send(peer, connected_bytes())
      assert [%Frame{command: :connected}] = receive_frames()
      reply_heart_beats(0)
      Process.exit(caller, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^caller, :killed}
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      Peer.assert_closed(peer)
    end

    test "continues a frame from its parse state, and skips CONNECTED if hb_recv is given" do
      {socket, peer} = Peer.pair()
      test = self()
      {:ok, [], state} = Frame.parse_all("MESSAGE\nk:v\n\nbo")

      looping =
        Task.async(fn ->
          Receiver.loop(%{
            socket: socket,
            listener_pid: test,
            network_pid: test,
            sender_pid: test,
            parse_state: state,
            hb_recv: 0
          })
        end)

      Peer.send(peer, "dy\0")
      assert receive_frames() == [%Frame{command: :message, headers: [{"k", "v"}], body: "body"}]
      Peer.close(peer)
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      assert Task.await(looping) == :ok
    end

    test "on a closed socket ends with :closed" do
      {socket, _peer} = Peer.pair()
      Connection.close(socket)
      {:ok, receiver} = Receiver.start_link(socket, self(), self(), self())
      assert_disconnect(:closed, receiver)
    end

    test "refuses an active socket, and one with a packet option" do
      for option <- [[active: true], [packet: 4]] do
        {socket, _peer} = Peer.pair()
        :ok = :inet.setopts(socket, option)
        state = %{socket: socket, listener_pid: self(), network_pid: self(), sender_pid: self()}
        assert_raise ArgumentError, fn -> Receiver.loop(state) end
      end
    end
  end
end
