defmodule Barytherium.Network.WebSocketTest do
  @moduledoc """
  WebSockets, with a server that also sends what healthy ones never do. That everything else is as over TCP is what the
  other tests show, which run over each of `Barytherium.Peer.transports/0`.
  """
  use Barytherium.ReceiverCase, async: true

  import Barytherium.NetworkCase, only: [connect: 3]
  import ExUnit.CaptureLog

  alias Barytherium.{Network, WebSocketPeer}
  alias Barytherium.Network.Sender

  @moduletag capture_log: true

  @message "MESSAGE\nmessage-id:1\n\nlate\0"

  # A connection that has got CONNECTED: `{network, peer, sender}`.
  defp connected(opts \\ [], transport \\ :ws) do
    {network, peer} = connect(self(), opts ++ Peer.options(transport), transport)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Sender.write(sender, [%Frame{command: :connect}])
    assert {:ok, {1, "CONNECT\n\n\0"}} = WebSocketPeer.recv_frame(peer)
    Peer.send(peer, connected_bytes())
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
    {network, peer, sender}
  end

  defp received do
    assert_receive {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}}
    for frame <- frames, do: frame.body
  end

  defp raw(peer, frames), do: WebSocketPeer.send_raw(peer, frames)
  defp frame(opcode, payload, first \\ 0b1000), do: WebSocketPeer.frame(opcode, payload, first)

  describe "the opening handshake" do
    defp listening(answer) do
      listener = Peer.listen(:tcp)

      peer =
        Task.async(fn ->
          socket = Peer.accept(listener)
          peer = WebSocketPeer.accept(socket, answer)
          # The socket ends with this process.
          receive do: ({:request, from} -> send(from, peer.request))
        end)

      {Peer.port(listener), peer.pid}
    end

    defp refused(answer) do
      {port, _peer} = listening(answer)

      log =
        capture_log(fn ->
          assert Connection.connect("127.0.0.1", port, websocket: "/ws") ==
                   {:error, :upgrade_refused}
        end)

      [_all, text] = Regex.run(~r/127.0.0.1:#{port} refuses the WebSocket: (.*)\n/, log)
      text
    end

    defp replaced(lines, name, value), do: List.keystore(lines, name, 0, {name, value})

    test "keeps path and query, and has headers of the user" do
      {port, peer} = listening(& &1)
      headers = fn -> [{"cookie", "a=b"}, {"Authorization", "Bearer x"}] end
      opts = [websocket: "/a/b?c=d&e=%2F", upgrade_headers: headers]
      assert {:ok, socket} = Connection.connect("localhost", port, opts)
      send(peer, {:request, self()})
      assert_receive {"GET /a/b?c=d&e=%2F HTTP/1.1", headers}
      {key, headers} = Map.pop!(headers, "sec-websocket-key")
      assert byte_size(Base.decode64!(key)) == 16

      assert headers == %{
               "host" => "localhost:#{port}",
               "upgrade" => "websocket",
               "connection" => "Upgrade",
               "sec-websocket-version" => "13",
               "sec-websocket-protocol" => "v12.stomp, v11.stomp, v10.stomp",
               "cookie" => "a=b",
               "authorization" => "Bearer x"
             }

      Connection.close(socket)
    end

    test "is refused by a status, and no redirection is followed" do
      for {status, more, text} <- [
            {"401 Unauthorized", [], "401 Unauthorized"},
            {"302 Found", [{"Location", "ws://h/a?b"}], "302 Found, elsewhere: ws://h:80"},
            {"302 Found", [{"Location", "/a"}], "302 Found, elsewhere"},
            {"200 OK", [], "200 OK"}
          ] do
        assert refused(fn _lines -> ["HTTP/1.1 #{status}" | more] end) == text
      end
    end

    test "what a server says reaches the log as one line, and without a token of the path" do
      elsewhere = {"Location", "https://h:1/ws?token=hunter2\r\n forged: line"}
      long = "\e[2J" <> String.duplicate("x", 5_000)

      for {lines, text} <- [
            {["HTTP/1.1 301 Moved", elsewhere], "301 Moved, elsewhere"},
            {["HTTP/1.1 403 #{long}"], "403 \\x1b[2J" <> String.duplicate("x", 192)}
          ] do
        assert refused(fn _lines -> lines end) =~ text
        refute refused(fn _lines -> lines end) =~ ~r/hunter2|forged|x{193}/
      end
    end

    test "other answers may come first, but not without end" do
      interim = {:raw, "\r\nHTTP/1.1 100 Continue\r\nA: b\r\n\r\n"}
      {port, _peer} = listening(&(["HTTP/1.1 103 Early Hints", interim] ++ &1))
      assert {:ok, socket} = Connection.connect("127.0.0.1", port, websocket: "/")
      Connection.close(socket)

      endless = List.duplicate({:raw, "HTTP/1.1 100 Continue\r\n\r\n"}, 10)
      assert refused(&(endless ++ &1)) == "its answer is no HTTP"
    end

    test "is refused if the answer is not that of RFC 6455" do
      for {change, text} <- [
            {&replaced(&1, "Sec-WebSocket-Accept", "other"), "it has not answered to our key"},
            {&List.keydelete(&1, "Sec-WebSocket-Accept", 0), "it has not answered to our key"},
            {&replaced(&1, "Upgrade", "h2c"), "it switches to something else"},
            {&replaced(&1, "Connection", "close"), "it switches to something else"},
            {&replaced(&1, "Sec-WebSocket-Protocol", "mqtt"),
             "it speaks another protocol than STOMP"},
            {&replaced(&1, "Sec-WebSocket-Extensions", "permessage-deflate"),
             "it uses an extension that was not offered"},
            {fn _lines -> ["SSH-2.0-OpenSSH"] end, "its answer is no HTTP"},
            {fn [status | _] -> [status, "no header"] end, "its answer is no HTTP"},
            {fn [status | lines] -> [status, {"A", String.duplicate("x", 17_000)} | lines] end,
             "its answer is no HTTP"}
          ] do
        assert refused(change) == text
      end
    end

    test "may come without a subprotocol, and in any case of letters" do
      change = fn lines ->
        lines
        |> List.keydelete("Sec-WebSocket-Protocol", 0)
        |> replaced("Upgrade", "WebSocket")
        |> replaced("Connection", "keep-alive, upgrade")
      end

      {port, _peer} = listening(change)
      assert {:ok, socket} = Connection.connect("127.0.0.1", port, websocket: "/")
      Connection.close(socket)
    end

    test "takes no longer than connecting may" do
      listener = Peer.listen(:tcp)
      opts = [websocket: "/", connect_timeout: 50]
      assert Connection.connect("127.0.0.1", Peer.port(listener), opts) == {:error, :timeout}
    end

    test "what comes behind the answer is not lost" do
      test = self()

      for transport <- [:ws, :wss, :wss_otp] do
        listener = Peer.listen(transport)

        task =
          Task.async(fn ->
            peer = Peer.accept(listener)

            # In one write with the answer. The line end behind the head becomes the last frame's payload.
            bytes = frame(1, connected_bytes()) <> frame(1, @message) <> <<0x81, 2>>
            WebSocketPeer.accept(peer, &(&1 ++ [{:raw, "\r\n" <> bytes}]))
            send(test, :accepted)
            receive do: (:end -> :ok)
          end)

        {:ok, network} =
          Network.start_link(self(), "127.0.0.1", Peer.port(listener), Peer.options(transport))

        assert_receive :accepted, 5_000
        assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
        assert received() == [""]
        assert received() == ["late"]
        send(task.pid, :end)
        GenServer.stop(network)
      end
    end

    test "options that cannot be used are refused" do
      for opts <- [
            [websocket: "ws"],
            [websocket: "/a b"],
            [websocket: "/a\r\nb"],
            [websocket: "/a#b"],
            [websocket: "/", upgrade_headers: [{"a", "b\r\nc: d"}]],
            [websocket: "/", upgrade_headers: [{"a b", "c"}]],
            [websocket: "/", upgrade_headers: [{"Host", "c"}]],
            [websocket: "/", upgrade_headers: [{"Sec-WebSocket-Key", "c"}]],
            [websocket: "/", upgrade_headers: [{"a", 1}]],
            [upgrade_headers: [{"a", "b"}]]
          ] do
        assert_raise ArgumentError, fn -> Network.start_link(self(), "localhost", 1, opts) end
      end
    end
  end

  describe "frames of the server" do
    test "may be divided in any way" do
      {_network, peer, _sender} = connected()
      raw(peer, frame(1, @message <> @message <> "MESS"))
      assert received() == ["late", "late"]
      raw(peer, frame(2, "AGE\n", 0) <> frame(9, "ping") <> frame(0, "", 0) <> frame(0, "\nx\0"))
      assert received() == ["x"]
    end

    test "a ping is answered at once, and only the last of several has to be" do
      for transport <- [:ws, :wss, :wss_otp] do
        {network, peer, _sender} = connected([], transport)
        raw(peer, frame(9, "a"))
        assert WebSocketPeer.recv_frame(peer) == {:ok, {10, "a"}}
        raw(peer, frame(9, "b") <> frame(10, "unasked") <> frame(9, "c") <> frame(1, @message))
        assert WebSocketPeer.recv_frame(peer) == {:ok, {10, "c"}}
        assert received() == ["late"]
        GenServer.stop(network)
      end
    end

    test "a peer that pings and does not read is not answered more than once at a time" do
      opts = [send_timeout: :infinity, send_buffer: 4_096] ++ Peer.options(:ws)
      {network, peer} = connect(self(), opts, :ws)
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
      large = %Frame{command: :send, headers: [], body: :binary.copy("x", 10_000_000)}
      Sender.write(sender, [%Frame{command: :connect}])
      Peer.send(peer, connected_bytes())
      # It never ends.
      Sender.write(sender, [large])
      {:links, links} = Process.info(sender, :links)
      [writer] = links -- [network]
      for _n <- 1..100, do: raw(peer, frame(9, "a") <> frame(1, "MESSAGE\n\n\0"))
      for _n <- 1..101, do: receive_one()
      assert {:message_queue_len, queued} = Process.info(writer, :message_queue_len)
      assert queued <= 1
    end

    # Frames come one by one, or more together.
    defp receive_one do
      case Process.delete(:rest) || [] do
        [] ->
          Process.put(:rest, received())
          receive_one()

        [body | rest] ->
          Process.put(:rest, rest)
          body
      end
    end

    test "pings are a sign of life" do
      for transport <- [:ws, :wss, :wss_otp] do
        opts = [heartbeat_receive_allowance: 100] ++ Peer.options(transport)
        {network, peer} = connect(self(), opts, transport)
        assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
        Sender.write(sender, [%Frame{command: :connect, headers: [{"heart-beat", "0,100"}]}])
        Peer.send(peer, "CONNECTED\nversion:1.2\nheart-beat:100,0\n\n\0")
        assert received() == [""]

        for _n <- 1..10 do
          raw(peer, frame(9, ""))
          refute_receive {:"$gen_cast", _end}, 50
        end

        GenServer.stop(network)
      end
    end

    test "a pong never comes in the middle of a frame" do
      {_network, peer, sender} = connected()
      # Larger than what is given to the socket at once.
      large = :binary.copy("x", 1_500_000)
      send = %Frame{command: :send, headers: [{"destination", "/queue/a"}], body: large}
      test = self()

      writing =
        Task.async(fn ->
          for _n <- 1..2, do: :ok = Sender.write(sender, [send], :sync)
          send(test, :written)
        end)

      for n <- 1..50, do: raw(peer, frame(9, "#{n}"))
      frames = for _n <- 1..2, do: next_message(peer)
      assert Enum.all?(frames, &match?({1, "SEND\ndestination:/queue/a\n" <> _rest}, &1))
      Task.await(writing)
    end

    defp next_message(peer) do
      case WebSocketPeer.recv_frame(peer, 10_000) do
        {:ok, {10, _pong}} -> next_message(peer)
        {:ok, message} -> message
      end
    end

    test "an orderly close is answered with its code, and is no news" do
      for code <- [1000, 1001] do
        {_network, peer, _sender} = connected()

        log =
          capture_log(fn ->
            raw(peer, frame(1, @message) <> frame(8, <<code::16, "bye">>))
            assert received() == ["late"]
            assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
          end)

        refute log =~ "WebSocket"
        assert WebSocketPeer.recv_frame(peer) == {:ok, {8, <<code::16>>}}
        assert {:error, :closed} = WebSocketPeer.recv_frame(peer)
      end
    end

    test "the log says why a server closes" do
      {_network, peer, _sender} = connected()

      log =
        capture_log(fn ->
          raw(peer, frame(8, <<1008::16, "no\ncredentials">>))
          assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
        end)

      assert log =~ ~S(the server closed with code 1008: "no\ncredentials")
    end

    test "what no server may send ends the connection, after what came before it" do
      for {bad, text} <- [
            {frame(1, "x", 0b1100), "reserved bit"},
            {frame(3, "x"), "reserved opcode 3"},
            {<<0x81, 0x81, 1, 2, 3, 4, 5>>, "masked"},
            {<<0x81, 127, -1::64>>, "negative"},
            {frame(9, String.duplicate("x", 126)), "control frame"},
            {frame(9, "x", 0), "control frame"},
            {frame(0, "x"), "continues no message"},
            {frame(8, "x"), "no valid code"},
            {frame(8, <<1005::16>>), "no valid code"},
            {frame(8, <<1000::16, 0xFF>>), "not UTF-8"}
          ],
          transport <- [:ws, :wss_otp] do
        {_network, peer, _sender} = connected([], transport)

        log =
          capture_log(fn ->
            raw(peer, frame(1, @message) <> bad)
            assert received() == ["late"]
            assert_receive {:"$gen_cast", {:barytherium, :disconnect, :protocol_error}}
          end)

        assert log =~ ~r/WebSocket: 127.0.0.1:\d+: .*#{text}/
        code = if text == "not UTF-8", do: 1007, else: 1002
        assert WebSocketPeer.recv_frame(peer) == {:ok, {8, <<code::16>>}}
      end
    end

    test "STOMP's limits hold, however large a frame says to be" do
      {_network, peer, _sender} = connected(max_header_line: 100)
      raw(peer, <<0x82, 127, 1_000_000_000_000::64, "MESSAGE\n">>)
      raw(peer, String.duplicate("x", 1_000))
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :parse_error}}
    end
  end

  describe "frames of the client" do
    test "are text if they are UTF-8, one for each STOMP frame, each with a mask of its own" do
      {_network, peer, sender} = connected()
      to = [{"destination", "/queue/ž"}]
      send = %Frame{command: :send, headers: to, body: "späť"}
      Sender.write(sender, [send, send, %{send | body: <<0xFF, 0>>}])

      text = "SEND\ndestination:/queue/ž\ncontent-length:6\n\nspäť\0"
      assert WebSocketPeer.recv_frame(peer) == {:ok, {1, text}}
      assert WebSocketPeer.recv_frame(peer) == {:ok, {1, text}}
      assert {:ok, {2, "SEND\ndestination:/queue/ž\n" <> binary}} = WebSocketPeer.recv_frame(peer)
      assert binary == "content-length:2\n\n" <> <<0xFF, 0, 0>>
    end

    test "have masks that differ" do
      {_network, peer, sender} = connected()
      for _n <- 1..20, do: Sender.write(sender, [%Frame{command: :ack, headers: [{"id", "1"}]}])
      frame = byte_size("ACK\nid:1\n\n\0") + 6
      {:ok, bytes} = Connection.recv(Peer.socket(peer), 20 * frame, 2_000)
      masks = for <<_head::16, mask::32, _rest::binary-size(frame - 6) <- bytes>>, do: mask
      assert length(Enum.uniq(masks)) == 20
    end

    test "a heart-beat is a line end in a message" do
      {_network, peer} = connect(self(), Peer.options(:ws), :ws)
      assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
      Sender.write(sender, [%Frame{command: :connect, headers: [{"heart-beat", "50,0"}]}])
      assert {:ok, {1, "CONNECT" <> _headers}} = WebSocketPeer.recv_frame(peer)
      Peer.send(peer, "CONNECTED\nversion:1.2\nheart-beat:0,50\n\n\0")
      for _n <- 1..3, do: assert(WebSocketPeer.recv_frame(peer) == {:ok, {1, "\n"}})
    end

    test "the last one is a close frame" do
      for transport <- [:ws, :wss, :wss_otp] do
        {network, peer, sender} = connected([], transport)
        Sender.write(sender, [%Frame{command: :ack, headers: [{"id", "1"}]}])
        stopping = Task.async(fn -> GenServer.stop(network) end)
        assert WebSocketPeer.recv_frame(peer) == {:ok, {1, "ACK\nid:1\n\n\0"}}
        assert WebSocketPeer.recv_frame(peer) == {:ok, {1, "DISCONNECT\n\n\0"}}
        assert WebSocketPeer.recv_frame(peer) == {:ok, {8, <<1000::16>>}}
        assert {:error, :closed} = WebSocketPeer.recv_frame(peer)
        Peer.close(peer)
        Task.await(stopping)
      end
    end

    test "Connection's functions work on it" do
      for transport <- [:ws, :wss, :wss_otp] do
        {socket, peer} = Peer.pair(transport)
        assert Connection.send(socket, ["he", "llo"]) == :ok
        assert WebSocketPeer.recv_frame(peer) == {:ok, {1, "hello"}}
        raw(peer, frame(1, "0123", 0) <> frame(9, "") <> frame(0, "456"))
        assert Connection.recv(socket, 5, 2_000) == {:ok, "01234"}
        assert Connection.recv(socket, 0, 2_000) == {:ok, "56"}
        assert Connection.recv(socket, 1, 10) == {:error, :timeout}
        assert Connection.send(socket, "") == :ok
        assert WebSocketPeer.recv_frame(peer) == {:ok, {10, ""}}
        raw(peer, frame(8, ""))
        assert Connection.recv(socket, 0, 2_000) == {:error, :closed}
        assert Connection.send(socket, "late") == {:error, :closed}
        Connection.close(socket)
      end
    end
  end
end
