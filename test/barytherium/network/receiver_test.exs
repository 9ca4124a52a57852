defmodule Barytherium.Network.ReceiverTest do
  use Barytherium.ReceiverCase, async: true

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

      test "octet by octet it is the same" do
        {receiver, peer, _socket} = start_receiver(@transport)
        Peer.send_octets(peer, connected_bytes())
        assert [%Frame{command: :connected}] = receive_frames()
        reply_heart_beats(0)
        Peer.send_octets(peer, ["\r\n", message(1, "a\0b")] |> IO.iodata_to_binary())

        headers = [{"n", "1"}, {"content-length", "3"}]
        assert receive_frames() == [%Frame{command: :message, headers: headers, body: "a\0b"}]
        Peer.close(peer)
        assert_disconnect(:closed, receiver)
      end

      test "silence before CONNECTED is a time-out, and trickling does not help" do
        {receiver, peer, _socket} = start_receiver(@transport, first_frame_timeout: 100)
        Peer.send(peer, "CONN")
        assert_disconnect(:timeout, receiver)
        Peer.assert_closed(peer)
      end

      test "a heart-beat that dies is a time-out" do
        {receiver, peer, _socket} = start_connected(@transport, [], 300)
        started = System.monotonic_time(:millisecond)
        assert_disconnect(:timeout, receiver)
        assert System.monotonic_time(:millisecond) - started >= 550
        Peer.assert_closed(peer)
      end

      test "any octet keeps a connection alive, also in mid-frame" do
        opts = [heartbeat_receive_allowance: 2_000]
        {receiver, peer, _socket} = start_connected(@transport, opts, 100)

        for octet <- ["\n", "\n", "M", "ESSAGE\n\n", "b"] do
          # The pace is the test: together longer than one interval and its allowance, each less.
          Process.sleep(450)
          Peer.send(peer, octet)
        end

        Peer.send(peer, "\0")
        assert [%Frame{command: :message, body: "b"}] = receive_frames()
        Peer.close(peer)
        assert_disconnect(:closed, receiver)
      end

      test "an ERROR first is delivered alone, and is the end, though the peer does not close" do
        {receiver, peer, _socket} = start_receiver(@transport)

        log =
          ExUnit.CaptureLog.capture_log(fn ->
            Peer.send(peer, "ERROR\nmessage:Bad CONNECT\n\nAccess refused\0CONNECTED\n\n\0")
            assert [%Frame{command: :error, body: "Access refused"}] = receive_frames()
            assert_disconnect(:closed, receiver)
          end)

        assert log =~ ~r/127.0.0.1:\d+ refused the connection: "Bad CONNECT"/
        Peer.assert_closed(peer)
        refute_received {:"$gen_call", _from, _call}
      end

      test "any other first frame is a parse error" do
        {receiver, peer, _socket} = start_receiver(@transport)
        Peer.send(peer, message(1))
        assert_disconnect(:parse_error, receiver)
        Peer.assert_closed(peer)
      end

      test "a peer that closes in mid-frame; what was whole came first" do
        {receiver, peer, _socket} = start_connected(@transport)
        Peer.send(peer, [message(1), message(2), "MESSAGE\nn:3\n\nhalf"])
        Peer.close(peer)
        assert numbers(receive_frames(2)) == [1, 2]
        assert_disconnect(:closed, receiver)
      end

      test "the socket closed by its owner" do
        {receiver, peer, socket} = start_connected(@transport)
        assert :ok = Connection.close(socket)
        assert_disconnect(:closed, receiver)
        Peer.assert_closed(peer)
      end

      test "a body of 20 MB without content-length" do
        {receiver, peer, _socket} = start_connected(@transport)
        body = String.duplicate("0123456789", 2_000_000)
        sending = Task.async(fn -> Peer.send(peer, ["MESSAGE\n\n", body, 0]) end)
        assert [%Frame{command: :message, body: ^body}] = receive_frames()
        Task.await(sending)
        Peer.close(peer)
        assert_disconnect(:closed, receiver)
      end

      test "a binary body of 1 MB, and what follows it at once" do
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
            "a content-length without end":
              "MESSAGE\ncontent-length:#{String.duplicate("9", 30)}\n",
            "a body longer than its length": "MESSAGE\ncontent-length:1\n\nxy\0",
            "a body over the limit": "MESSAGE\ncontent-length:104857601\n"
          ] do
        test "#{name} is a parse error at once, after what was good" do
          {receiver, peer, _socket} = start_connected(@transport)
          Peer.send(peer, [message(1), message(2), unquote(bytes)])
          assert numbers(receive_frames(2)) == [1, 2]
          assert_disconnect(:parse_error, receiver)
          Peer.assert_closed(peer)
        end
      end
    end
  end

  test "five seconds for CONNECTED, unless told otherwise" do
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

  test "killing the receiver frees its descriptor, and the peer sees the end" do
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
      assert {:gen_server, :loop, _arity} = function
    end
  end

  # Every path to a dirty thread waits for a processor where all are busy.
  for transport <- [:tcp, :socket] do
    test "a connection that has little to read is never read on another thread (#{transport})" do
      {receiver, peer, _socket} = start_connected(unquote(transport))
      :erlang.trace(receiver, true, [:call])
      :erlang.trace_pattern({Barytherium.Network.Parser, :receive_slice, 1}, true, [])

      # More messages than the high-water mark.
      for n <- 1..300 do
        Peer.send(peer, message(n))
        assert numbers(receive_frames()) == [n]
      end

      # In pieces, with pauses that let the loop wait in mid-frame.
      for piece <- ["MESS", "AGE\nn:", "1\ncontent-length:5", "\n\nbo", "dy!", "\0"] do
        Peer.send(peer, piece)
        # The pause is the case: the loop waits in mid-frame.
        Process.sleep(10)
      end

      assert [%Frame{body: "body!"}] = receive_frames()

      # Larger than what is read at once.
      for n <- 1..5 do
        Peer.send(peer, message(n, String.duplicate("x", 50_000)))
        assert numbers(receive_frames()) == [n]
      end

      refute_received {:trace, ^receiver, :call, _call}
      Peer.close(peer)
      assert_disconnect(:closed, receiver)
    end
  end

  test "messages that are not for it, and who looks at it, put off no time-out" do
    {receiver, _peer, _socket} = start_connected(:tcp, [], 200)

    looking =
      Task.async(fn ->
        send(receiver, :stray)
        send(receiver, {:barytherium, :resume})
        GenServer.cast(receiver, :stray)
        for _n <- 1..200, do: :sys.get_state(receiver) && Process.sleep(10)
      end)

    Process.unlink(looking.pid)
    # It looks for longer than this waits.
    assert_disconnect(:timeout, receiver)
    Process.exit(looking.pid, :kill)
  end

  test "a kept frame keeps no other in memory: neither bodies nor headers" do
    {_receiver, peer, _socket} = start_connected()
    long = fn letter -> String.duplicate(letter, 100) end

    # In one read; the large body is in another frame, and read in parts.
    Peer.send(peer, [
      "MESSAGE\nheader:#{long.("h")}\n\n#{long.("b")}\0",
      "MESSAGE\nheader:#{long.("i")}\n\n#{String.duplicate("x", 200_000)}\0",
      "MESSAGE\nheader:#{long.("i")}\n\n#{long.("c")}\0"
    ])

    for %Frame{headers: [{name, value}], body: body} <- receive_frames(3),
        binary <- [name, value, body] do
      assert :binary.referenced_byte_size(binary) == byte_size(binary)
    end
  end

  describe "loop/1" do
    test "returns when the connection ends, and leaves its caller's messages alone" do
      {socket, peer} = Peer.pair()
      test = self()

      looping =
        Task.async(fn ->
          # To search so many for each frame would take minutes.
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

    test "does not wait for its caller, if that is the listener, by whatever name" do
      Process.register(self(), __MODULE__)

      for name <- [self(), __MODULE__, {__MODULE__, node()}] do
        {socket, peer} = Peer.pair()
        frames = [connected_bytes() | for(n <- 1..30_000, do: message(n))]
        spawn_link(fn -> Peer.send(peer, frames) && Peer.close(peer) end)
        test = self()
        network = spawn_link(fn -> network(test) end)
        state = %{loop_state(socket, self()) | listener_pid: name, network_pid: network}
        assert :ok = Receiver.loop(state)
        assert [%Frame{command: :connected}] = receive_frames()
        assert length(receive_frames(30_000)) == 30_000
      end
    end

    defp network(test) do
      receive do:
                ({:"$gen_call", from, {:connected_frame, _frame}} ->
                   GenServer.reply(from, {0, 0}))

      receive do: (disconnect -> send(test, disconnect))
    end

    test "a parse state that was used is the caller's mistake" do
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

    test "starts in mid-frame where a parse state says so, connected where hb_recv does" do
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

    test "on a closed socket it is closed" do
      {socket, _peer} = Peer.pair()
      Connection.close(socket)
      {:ok, receiver} = Receiver.start_link(socket, self(), self(), self())
      assert_disconnect(:closed, receiver)
    end

    test "an active socket, or one that cuts packets, is refused" do
      for option <- [[active: true], [packet: 4]] do
        {socket, _peer} = Peer.pair()
        :ok = :inet.setopts(socket, option)
        state = %{socket: socket, listener_pid: self(), network_pid: self(), sender_pid: self()}
        assert_raise ArgumentError, fn -> Receiver.loop(state) end
      end
    end
  end
end
