defmodule Barytherium.Network.InflateTest do
  @moduledoc "Compressed bodies with the option `inflate`."
  # Bombs, and a look at the memory of the VM.
  use Barytherium.ReceiverCase, async: false

  alias Barytherium.Native

  @moduletag capture_log: true

  # A piece is 64 KiB: some are less, some take several pieces, and some several turns.
  @sizes [0, 1, 64, 65, 3_000, 16_384, 65_536, 65_537, 200_000, 5_000_000]

  defp message(body, headers \\ "") do
    body = IO.iodata_to_binary(body)
    "MESSAGE\n#{headers}content-length:#{byte_size(body)}\n\n" <> body <> <<0>>
  end

  # Half of it cannot be compressed.
  defp text(size) do
    random = :crypto.strong_rand_bytes(div(size, 2))
    random <> :binary.copy("t", size - byte_size(random))
  end

  defp raw_deflate(data) do
    z = :zlib.open()
    :ok = :zlib.deflateInit(z, :default, :deflated, -15, 8, :default)
    compressed = :zlib.deflate(z, data, :finish)
    :zlib.close(z)
    compressed
  end

  defp bodies(count), do: for(frame <- receive_frames(count), do: frame.body)

  for transport <- [:tcp, :tls, :ssl, :ws] do
    test "all sizes and formats come out, in their order, over #{transport}" do
      transport = unquote(transport)
      {receiver, peer, _socket} = start_connected(transport, inflate: true)

      {messages, expected} =
        for size <- @sizes, text = text(size), reduce: {[], []} do
          {messages, expected} ->
            more = [
              message(text),
              message(:zlib.gzip(text)),
              message(:zlib.compress(text)),
              message(:zlib.compress(text), "content-encoding:deflate\n"),
              message(raw_deflate(text), "content-encoding:deflate\n"),
              message(:zlib.gzip(text), "content-encoding:gzip\n")
            ]

            {[messages | more], expected ++ List.duplicate(text, 6)}
        end

      spawn_link(fn -> Peer.send_all(peer, messages) end)
      assert bodies(length(expected)) == expected
      assert_disconnect(:closed, receiver)
    end
  end

  test "bodies come out whatever the pieces in which they arrive" do
    {receiver, peer, _socket} = start_connected(:tcp, inflate: true)
    text = text(300_000)
    bytes = IO.iodata_to_binary([message("before"), message(:zlib.gzip(text)), message("after")])

    for size <- [1_000, 7, 4_096] do
      bytes |> chunks(size) |> Enum.each(&Peer.send(peer, &1))
      assert bodies(3) == ["before", text, "after"]
    end

    Peer.close(peer)
    assert_disconnect(:closed, receiver)
  end

  defp chunks(bytes, size) when byte_size(bytes) <= size, do: [bytes]

  defp chunks(bytes, size) do
    <<chunk::binary-size(size), rest::binary>> = bytes
    [chunk | chunks(rest, size)]
  end

  test "headers stay as they were sent" do
    {_receiver, peer, _socket} = start_connected(:tcp, inflate: true)
    small = IO.iodata_to_binary(:zlib.gzip("small"))
    large = IO.iodata_to_binary(:zlib.gzip(text(100_000)))

    for body <- [small, large] do
      Peer.send(peer, message(body, "a\\cb:c\\nd\ncontent-encoding:gzip\n"))
      assert [%Frame{command: :message, headers: headers}] = receive_frames()

      assert headers == [
               {"a:b", "c\nd"},
               {"content-encoding", "gzip"},
               {"content-length", "#{byte_size(body)}"}
             ]
    end
  end

  test "without the option nothing is inflated" do
    {_receiver, peer, _socket} = start_connected()
    gzip = :zlib.gzip("text")
    Peer.send(peer, message(gzip, "content-encoding:gzip\n"))
    assert bodies(1) == [gzip]
  end

  test "what is not compressed stays as it is" do
    {_receiver, peer, _socket} = start_connected(:tcp, inflate: true)
    # Text can begin as zlib does, and an empty body is none.
    for body <- ["<xml/>", "x^2 + y^2", "\x1f\x8b", <<0x78, 0x9C>>, ""] do
      Peer.send(peer, message(body))
      assert bodies(1) == [body]
    end

    Peer.send(peer, message("", "content-encoding:gzip\n"))
    assert bodies(1) == [""]
    # Nothing but a message is inflated.
    gzip = :zlib.gzip("text")
    Peer.send(peer, ["ERROR\ncontent-length:#{byte_size(gzip)}\n\n", gzip, 0])
    assert bodies(1) == [gzip]
  end

  test "a body that cannot be inflated is delivered with the reason, and the next ones are inflated" do
    {receiver, peer, _socket} = start_connected(:tcp, inflate: true, max_inflated: 1_000_000)
    gzip = :zlib.gzip("text")
    large = :zlib.gzip(text(1_000_000))
    end_of = &binary_part(&1, byte_size(&1), -8)
    <<first, rest::binary>> = binary_part(large, 100_000, 100_000)

    bad = [
      too_large: :zlib.gzip(text(1_000_001)),
      too_large: :zlib.compress(:binary.copy("0", 10_000_000)),
      # It says that it is small.
      too_large:
        binary_part(:zlib.gzip(:binary.copy("0", 10_000_000)), 0, 9_700) <>
          <<0::32, 5::little-32>>,
      damaged: binary_part(gzip, 0, byte_size(gzip) - 1),
      # Cut off. What happens to be at its end is taken for its length, so that could be too large.
      damaged: binary_part(large, 0, 400_000) <> <<1_000::little-32>>,
      # A byte in the middle, after several pieces.
      damaged:
        binary_part(large, 0, 100_000) <>
          <<Bitwise.bxor(first, 1)>> <>
          rest <> binary_part(large, 200_000, byte_size(large) - 200_000),
      # A length that lies.
      damaged: binary_part(gzip, 0, byte_size(gzip) - 4) <> <<5::little-32>>,
      several_members: gzip <> gzip,
      trailing_bytes: gzip <> "junk",
      # As if it had ended twice.
      trailing_bytes: gzip <> end_of.(gzip)
    ]

    for {reason, body} <- bad do
      Peer.send(peer, [message(body), message(gzip)])
      assert bodies(2) == [{:compressed, body, reason}, "text"]
    end

    Peer.send(peer, message("<xml/>", "content-encoding:gzip\n"))
    assert bodies(1) == [{:compressed, "<xml/>", :damaged}]
    Peer.send(peer, message(:zlib.gzip(text(1_000_000))))
    assert [<<_::binary-size(1_000_000)>>] = bodies(1)
    Peer.close(peer)
    assert_disconnect(:closed, receiver)
  end

  test "stats count what was inflated and what could not be" do
    {network, peer} = Barytherium.NetworkCase.connect(self(), inflate: true)
    Barytherium.NetworkCase.connected(network, peer)
    bodies = ["plain", :zlib.gzip("a"), :zlib.gzip(text(100_000)), :zlib.gzip("b") <> "junk"]
    Peer.send(peer, Enum.map(bodies, &message/1))
    await_frames(4)
    assert %{inflated: 2, not_inflated: 1} = Barytherium.Network.stats(network)
    Peer.close(peer)
  end

  defp await_frames(0), do: :ok

  defp await_frames(count) do
    assert_receive {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}}
    await_frames(count - length(frames))
  end

  test "a large body that came before the end of the connection is delivered before it" do
    text = :binary.copy("t", 90_000_000)
    {receiver, peer, _socket} = start_connected(:tcp, inflate: true)
    Peer.send_all(peer, [message(:zlib.gzip(text)), message("after")])
    assert [^text, "after"] = bodies(2)
    assert_disconnect(:closed, receiver)
  end

  test "nothing is left of a connection whose process is killed while it inflates" do
    bomb = message(:zlib.gzip(:binary.copy("0", 100_000_000)))
    Process.flag(:trap_exit, true)

    for _attempt <- 1..5 do
      {receiver, peer, _socket} = start_connected(:tcp, inflate: true)
      Peer.send(peer, List.duplicate(bomb, 20))
      receive_frames()
      Process.exit(receiver, :kill)
      assert_receive {:EXIT, ^receiver, :killed}
      Peer.assert_closed(peer)
    end
  end

  test "while a connection inflates bombs, others are read" do
    bomb = message(:zlib.gzip(:binary.copy("0", 100_000_000)))

    floods =
      for _n <- 1..4 do
        spawn_link(fn ->
          {_receiver, peer, _socket} = start_connected(:tcp, inflate: true)
          spawn_link(fn -> for _n <- Stream.cycle([1]), do: Connection.send(peer, bomb) end)
          for _n <- Stream.cycle([1]), do: receive_frames()
        end)
      end

    {_receiver, peer, _socket} = start_connected(:tcp, inflate: true)

    for n <- 1..50 do
      Peer.send(peer, message(:zlib.gzip("#{n}")))
      assert bodies(1) == ["#{n}"]
    end

    for flood <- floods do
      Process.unlink(flood)
      Process.exit(flood, :kill)
    end
  end

  test "a body that nothing comes out of takes turns like any other" do
    {network, peer} = Barytherium.NetworkCase.connect(self(), inflate: true)
    Barytherium.NetworkCase.connected(network, peer)
    # Empty blocks, and at the end a last one.
    body = :binary.copy(<<0, 0, 0, 255, 255>>, 2_000_000) <> <<1, 0, 0, 255, 255>>
    message = message(body, "content-encoding:deflate\n")
    <<most::binary-size(byte_size(message) - 1), last::binary>> = message
    Peer.send(peer, most)
    stats = fn -> Barytherium.Network.stats(network) end
    eventually(fn -> stats.().bytes >= byte_size(most) end)
    before = stats.().slices
    Peer.send(peer, last)
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{body: ""}], _sender}}}
    # One call would hold its thread for a tenth of a second.
    assert stats.().slices - before > 20
    Peer.close(peer)
  end

  for {name, compress} <- [gzip: :gzip, zlib: :compress] do
    @tag compress: compress
    @tag :memory
    test "connections to one process do not all begin a large body that it has no room for: #{name}",
         %{compress: compress} do
      bomb = message(apply(:zlib, compress, [:binary.copy("0", 60_000_000)]))
      # Takes nothing until it is told to.
      listener = spawn_link(fn -> receive(do: (:take -> take(0))) end)

      connections =
        for _n <- 1..6 do
          {socket, peer} = Peer.pair(:tcp)
          {:ok, receiver} = Receiver.start_link(socket, listener, self(), self(), inflate: true)
          Peer.send(peer, connected_bytes())
          reply_heart_beats(0)
          {receiver, peer}
        end

      before = :erlang.memory(:binary)
      for {_receiver, peer} <- connections, do: Peer.send(peer, bomb)
      # The first one is there, and another goes on after a quarter of a second, as a trial.
      eventually(fn -> :erlang.memory(:binary) - before > 59_000_000 end)
      for _look <- 1..20, do: assert(:erlang.memory(:binary) - before < 200_000_000)

      send(listener, :take)
      assert await_bodies(listener, 6) == :ok
      for {_receiver, peer} <- connections, do: Peer.close(peer)
    end
  end

  defp take(count) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
        take(count + Enum.count(frames, &(byte_size(&1.body) == 60_000_000)))

      {:report, test} ->
        send(test, {:taken, count})
        take(count)
    end
  end

  defp await_bodies(listener, count) do
    eventually(fn ->
      send(listener, {:report, self()})
      receive(do: ({:taken, taken} -> taken >= count))
    end)
  end

  test "a route says for itself whether bodies are inflated" do
    routes = Native.new_routes()
    listener = Peer.listen(:tcp)

    {:ok, network} =
      Barytherium.Network.start_link(
        self(),
        {127, 0, 0, 1},
        Peer.port(listener),
        [inflate: true],
        routes
      )

    peer = Peer.accept(listener)
    {_network, sender} = Barytherium.NetworkCase.connected(network, peer)
    Native.put_route(routes, ["raw"], route([self()], sender, inflate: false))
    Native.put_route(routes, ["inflated"], route([self()], sender, inflate: true))
    Native.put_route(routes, ["default"], route([self()], sender))
    gzip = :zlib.gzip("text")

    for {subscription, body} <- [{"raw", gzip}, {"inflated", "text"}, {"default", "text"}] do
      Peer.send(peer, message(gzip, "subscription:#{subscription}\n"))
      assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{body: ^body}], ^sender, _}}}
    end

    Peer.close(peer)
  end
end
