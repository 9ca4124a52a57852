defmodule Barytherium.Network.RoutesTest do
  @moduledoc "The messages of a subscription that has a route go to its process."
  use ExUnit.Case, async: true

  import Barytherium.ReceiverCase, only: [eventually: 1, route: 2]

  alias Barytherium.{Frame, Native, Network, Peer}
  alias Barytherium.Network.Sender

  @moduletag capture_log: true

  # A connection with routes, after CONNECTED.
  defp connect(opts \\ [], transport \\ :tcp) do
    listener = Peer.listen(transport)
    routes = Native.new_routes()
    opts = Peer.options(transport) ++ opts
    {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, Peer.port(listener), opts, routes)
    peer = Peer.accept(listener, transport)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Sender.write(sender, [%Frame{command: :connect}])
    assert {:ok, "CONNECT\n\n\0"} = Peer.recv(peer)
    Peer.send(peer, "CONNECTED\nversion:1.2\n\n\0")
    assert [%Frame{command: :connected}] = frames(sender)
    %{routes: routes, network: network, peer: peer, sender: sender}
  end

  defp frames(sender) do
    assert_receive {:"$gen_cast", {:barytherium, :frames, {frames, ^sender}}}
    frames
  end

  defp message(id, body, more \\ ""), do: "MESSAGE\nsubscription:#{id}\n#{more}k:v\n\n#{body}\0"

  # A process that passes on the bodies that it gets, one list after the other.
  defp recipient(test \\ self()), do: spawn_link(fn -> pass_on(test) end)

  defp pass_on(test) do
    receive do
      # The time is that of the first frame.
      {:"$gen_cast", {:barytherium, :frames, {frames, sender, read_at}}} ->
        true = read_at in 1..Native.clock()
        send(test, {self(), for(frame <- frames, do: {frame.body, frame.headers}), sender})

      {:fence, _term} = fence ->
        send(test, {self(), fence})
    end

    pass_on(test)
  end

  # The bodies of the next frames that `pid` gets.
  defp bodies(pid, count), do: for({body, _headers} <- received(pid, count), do: body)

  # The same with their headers.
  defp received(_pid, 0), do: []

  defp received(pid, count) do
    assert_receive {^pid, list, _sender}
    list ++ received(pid, count - length(list))
  end

  # Processes with the routes "0", "1" and so on.
  defp recipients(routes, count) do
    for id <- 0..(count - 1) do
      pid = recipient()
      Native.put_route(routes, ["#{id}"], route([pid], pid))
      pid
    end
  end

  for transport <- Peer.transports() -- [:socket] do
    test "and all others to the callback process (#{transport})" do
      %{routes: routes, peer: peer, sender: sender} = connect([], unquote(transport))
      [one, two] = [recipient(), recipient()]
      Native.put_route(routes, ["1"], route([one], self()))
      Native.put_route(routes, ["2"], route([two], one))

      Peer.send(peer, [
        message("1", "a"),
        message("2", "b"),
        message("2", "c", "new:header\n"),
        "RECEIPT\nreceipt-id:r\n\n\0",
        message("3", "d"),
        "MESSAGE\n\ne\0",
        message(" 1 ", "f")
      ])

      test = self()
      assert_receive {^one, [{"a", [{"subscription", "1"}, {"k", "v"}]}], ^test}
      assert_receive {^two, [{"b", b}, {"c", c}], ^one}
      assert b == [{"subscription", "2"}, {"k", "v"}]
      assert c == [{"subscription", "2"}, {"new", "header"}, {"k", "v"}]
      assert [%Frame{command: :receipt}, %Frame{body: "d"}, %Frame{body: "e"}] = frames(sender)
      assert_receive {^one, [{"f", _headers}], ^test}
    end
  end

  test "set while a flood is being read, they hold for what comes after" do
    %{routes: routes, peer: peer} = connect(high_water_mark: :infinity)
    one = recipient()
    flood = :binary.copy(message("0", String.duplicate("x", 200)), 10_000)
    flooding = Task.async(fn -> for _n <- 1..20, do: Peer.send(peer, flood) end)
    for n <- 1..50, do: Native.put_route(routes, ["#{n}"], route([one], self()))
    Task.await(flooding)
    Peer.send(peer, for(n <- 1..50, do: message("#{n}", "#{n}")))
    assert bodies(one, 50) == Enum.map(1..50, &to_string/1)
  end

  test "that are deleted, or whose process has ended, are none" do
    %{routes: routes, peer: peer, sender: sender} = connect()
    [one, two] = [recipient(), recipient()]
    Native.put_route(routes, ["1"], route([one], self()))
    Native.put_route(routes, ["2"], route([two], self()))
    Process.unlink(two)
    Process.exit(two, :kill)
    Peer.send(peer, [message("2", "lost"), message("1", "a")])
    assert bodies(one, 1) == ["a"]
    Native.delete_route(routes, "1")
    Peer.send(peer, [message("1", "b"), "RECEIPT\nreceipt-id:r\n\n\0"])
    assert [%Frame{body: "b"}, %Frame{command: :receipt}] = frames(sender)
  end

  test "one process with several subscriptions gets their messages in the order on the wire" do
    %{routes: routes, peer: peer} = connect()
    one = recipient()
    for id <- 0..4, do: Native.put_route(routes, ["#{id}"], route([one], self()))
    Peer.send(peer, for(n <- 1..1_000, do: message(rem(n, 5), n)))
    assert bodies(one, 1_000) == Enum.map(1..1_000, &to_string/1)
  end

  test "recipients that take turns get what was read together in one message each" do
    %{routes: routes, peer: peer} = connect()
    recipients = recipients(routes, 10)
    # Lines that change for each message, now and then, and never.
    sent = for n <- 0..99, do: {rem(n, 10), [{"n", "#{n}"}, {"often", "#{div(n, 3)}"}], "#{n}"}
    Peer.send(peer, wire(sent))
    expected = expected(sent)

    for {pid, id} <- Enum.with_index(recipients) do
      assert_receive {^pid, got, ^pid}
      assert got == expected[id]
    end
  end

  # More recipients than there are batches (256), few values for each header, and cuts anywhere.
  test "each recipient gets its own frames, whatever came between them" do
    %{routes: routes, peer: peer} = connect(high_water_mark: :infinity)
    recipients = recipients(routes, 300)
    :rand.seed(:exsss, {1, 2, 3})

    for count <- [2, 3, 20, 300] do
      sent = for n <- 1..3_000, do: {:rand.uniform(count) - 1, random_headers(), "#{n}"}
      send_in_pieces(peer, IO.iodata_to_binary(wire(sent)))

      for {id, frames} <- expected(sent) do
        pid = Enum.at(recipients, id)
        assert received(pid, length(frames)) == frames
      end
    end
  end

  defp random_headers do
    for n <- 1..:rand.uniform(6)//1, do: {"h#{n}", "#{:rand.uniform(2)}"}
  end

  # Messages of `{subscription, headers, body}`, and the frames that each recipient gets of them.
  defp wire(sent) do
    lines = &for {name, value} <- &1, into: "", do: "#{name}:#{value}\n"
    for {id, headers, body} <- sent, do: message(id, body, lines.(headers))
  end

  defp expected(sent) do
    Enum.group_by(sent, &elem(&1, 0), fn {id, headers, body} ->
      {body, [{"subscription", "#{id}"}] ++ headers ++ [{"k", "v"}]}
    end)
  end

  defp send_in_pieces(_peer, ""), do: :ok

  defp send_in_pieces(peer, wire) do
    size = min(byte_size(wire), :rand.uniform(50_000))
    <<piece::binary-size(size), rest::binary>> = wire
    Peer.send(peer, piece)
    send_in_pieces(peer, rest)
  end

  test "a recipient that is behind stops the connection when there is more for it, and not before" do
    %{routes: routes, peer: peer, network: network, sender: sender} = connect(high_water_mark: 4)
    stuck = spawn_link(fn -> Process.sleep(:infinity) end)
    one = recipient()
    Native.put_route(routes, ["stuck"], route([stuck], self()))
    Native.put_route(routes, ["1"], route([one], self()))

    for n <- 1..4 do
      Peer.send(peer, [message("stuck", n), message("1", n)])
      assert bodies(one, 1) == ["#{n}"]
    end

    # It is full. Others go on.
    Peer.send(peer, for(n <- 5..20, do: message("1", n)))
    assert bodies(one, 16) == Enum.map(5..20, &to_string/1)
    Peer.send(peer, "RECEIPT\nreceipt-id:r\n\n\0")
    assert [%Frame{command: :receipt}] = frames(sender)
    Peer.send(peer, [message("1", 21), for(n <- 1..5, do: message("stuck", n)), message("1", 22)])
    eventually(fn -> Network.stats(network).pauses == 1 end)
    assert bodies(one, 1) == ["21"]
    {:message_queue_len, queued} = Process.info(stuck, :message_queue_len)
    assert queued in 4..6
    # Its end frees the others.
    Peer.send(peer, message("1", "after"))
    Process.unlink(stuck)
    Process.exit(stuck, :kill)
    assert bodies(one, 2) == ["22", "after"]
  end

  test "a fence comes behind everything that was read before it" do
    %{routes: routes, peer: peer, network: network, sender: sender} = connect()
    one = recipient()
    Native.put_route(routes, ["1"], route([one], self()))
    Peer.send(peer, [for(n <- 1..1_000, do: message("1", n)), "RECEIPT\nreceipt-id:r\n\n\0"])
    assert [%Frame{command: :receipt}] = frames(sender)
    Network.fence(network, one, {:fence, 1})
    assert bodies(one, 1_000) |> List.last() == "1000"
    assert_receive {^one, {:fence, 1}}
    # Also after the end.
    Peer.send_all(peer, message("1", "last"))
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
    Network.fence(network, one, {:fence, 2})
    assert bodies(one, 1) == ["last"]
    assert_receive {^one, {:fence, 2}}
  end
end
