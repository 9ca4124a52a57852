defmodule Barytherium.Network.DistributionTest do
  use Barytherium.ReceiverCase, async: false

  alias Barytherium.{Network, RemoteNode}

  setup do
    node = RemoteNode.start!()
    %{node: node, remote: RemoteNode.forwarder(node, self())}
  end

  defp receive_remote(0, _sender), do: []

  defp receive_remote(count, sender) do
    assert_receive {:forwarded, {:"$gen_cast", {:barytherium, :frames, {frames, ^sender}}}}
    frames ++ receive_remote(count - length(frames), sender)
  end

  defp receive_messages(0, _subscription), do: []

  defp receive_messages(count, subscription) do
    assert_receive {:forwarded, {:barytherium, :messages, {frames, ^subscription}}}
    frames ++ receive_messages(count - length(frames), subscription)
  end

  test "a listener on another node gets the same messages in the same order", context do
    {socket, peer} = Peer.pair()
    {:ok, receiver} = Receiver.start_link(socket, context.remote, self(), self())
    messages = for n <- 1..2_000, do: "MESSAGE\nn:#{n}\n\n" <> String.duplicate("b", 100) <> "\0"
    Peer.send(peer, [connected_bytes() | messages])
    sender = self()

    connected = %Frame{command: :connected, headers: [{"version", "1.2"}]}

    assert_receive {:forwarded, {:"$gen_cast", {:barytherium, :frames, {[^connected], ^sender}}}}

    reply_heart_beats(0)
    frames = receive_remote(2_000, sender)
    assert for(%Frame{headers: [{"n", n}]} <- frames, do: n) == Enum.map(1..2_000, &to_string/1)
    Peer.close(peer)
    assert_disconnect(:closed, receiver)
  end

  test "a network process on another node gets the disconnect", context do
    {socket, peer} = Peer.pair()
    {:ok, receiver} = Receiver.start_link(socket, self(), context.remote, self())
    Peer.send(peer, "GARBAGE")
    assert_receive {:forwarded, {:"$gen_cast", {:barytherium, :disconnect, :parse_error}}}
    monitor = Process.monitor(receiver)
    assert_receive {:DOWN, ^monitor, :process, ^receiver, _reason}
  end

  test "a callback process on another node gets connect, frames and disconnect", context do
    listener = Peer.listen(:tcp)
    {:ok, _network} = Network.start_link(context.remote, "127.0.0.1", Peer.port(listener))
    peer = Peer.accept(listener)
    assert_receive {:forwarded, {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}}
    Peer.send(peer, [connected_bytes(), "MESSAGE\n\n1\0MESSAGE\n\n2\0"])
    assert [%Frame{command: :connected}] = receive_remote(1, sender)
    assert [%Frame{body: "1"}, %Frame{body: "2"}] = receive_remote(2, sender)
    Peer.close(peer)
    assert_receive {:forwarded, {:"$gen_cast", {:barytherium, :disconnect, :closed}}}
  end

  test "a subscriber of a client on another node gets its messages, and the client waits for nothing",
       context do
    broker = start_supervised!(Barytherium.TestBroker)
    url = "stomp://127.0.0.1:#{Barytherium.TestBroker.port(broker)}"
    client = start_supervised!({Barytherium.Client, url: url})
    :ok = Barytherium.Client.publish(client, "/queue/b", "", wait: true)
    opts = [to: context.remote, ack: :auto]
    {:ok, subscription} = Barytherium.Client.subscribe(client, "/queue/a", opts)
    for n <- 1..100, do: Barytherium.TestBroker.publish(broker, "/queue/a", "#{n}")
    bodies = for frame <- receive_messages(100, subscription), do: frame.body
    assert bodies == Enum.map(1..100, &to_string/1)
    assert Barytherium.Client.unsubscribe(client, subscription) == :ok
  end

  test "the end of the listener's node ends the loop", %{node: node, remote: remote} do
    {socket, _peer} = Peer.pair()
    {:ok, receiver} = Receiver.start_link(socket, remote, self(), self())
    :erpc.cast(node, :erlang, :halt, [])
    assert_disconnect(:closed, receiver)
  end
end
