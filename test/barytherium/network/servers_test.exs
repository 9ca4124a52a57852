defmodule Barytherium.Network.ServersTest do
  @moduledoc """
  What lesser servers do that RabbitMQ and ActiveMQ do not. The rows of `guides/brokers.md` about them have
  their tests here.
  """
  use ExUnit.Case, async: true

  import Barytherium.NetworkCase
  import Barytherium.ReceiverCase, only: [eventually: 1]
  import ExUnit.CaptureLog

  alias Barytherium.{Client, ClientCase, Frame, Network, Peer}
  alias Barytherium.Network.Sender

  @moduletag capture_log: true

  # Sends CONNECT with these headers and answers with these bytes. Returns the network and the sender.
  defp connected(peer, headers, answer) do
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Sender.write(sender, [%Frame{command: :connect, headers: headers}])
    {:ok, "CONNECT\n" <> _headers} = Peer.recv(peer)
    Peer.send(peer, answer)
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
    sender
  end

  defp answer(""), do: "CONNECTED\n\n\0"
  defp answer(header), do: "CONNECTED\n#{header}\n\n\0"

  defp frames do
    assert_receive {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}}
    frames
  end

  defp assert_disconnect(reason) do
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, ^reason}}
    refute_received {:"$gen_cast", _message}
  end

  describe "lines that end in CR LF" do
    for version <- ["version:1.0\r\n", "version:1.1\r\n", "version:1.2\r\n", ""] do
      test "are read after #{inspect(version)}" do
        {_network, peer} = connect()
        connected(peer, [], "CONNECTED\r\n" <> unquote(version) <> "\r\n\0\r\n\r\n")
        Peer.send(peer, "MESSAGE\r\nk:v\r\n\r\nhi\r\n\0\r\n")
        assert [%Frame{headers: [{"k", "v"}], body: "hi\r\n"}] = frames()
        Peer.close(peer)
        assert_disconnect(:closed)
      end
    end
  end

  describe "the version of the answer" do
    for {offer, answer} <- [
          {"1.2", "version:1.1"},
          {"1.1,1.2", "version:1.0"},
          {"1.1, 1.2", ""},
          {"1.0,1.1,1.2", "version:2.0"},
          {nil, "version:2.0"},
          {"2.0", "version:2.0"}
        ] do
      test "#{inspect(answer)} to #{inspect(offer)} is refused" do
        headers = for offer <- List.wrap(unquote(offer)), do: {"accept-version", offer}

        log =
          capture_log(fn ->
            {network, peer} = connect()
            sender = connected(peer, headers, answer(unquote(answer)))
            assert_receive {:"$gen_cast", {:barytherium, :disconnect, :unsupported_version}}
            assert {:error, _} = Sender.write(sender, [%Frame{command: :ack}], :sync)
            assert {"", _reason} = Peer.read_all(peer)
            assert %{is_connected: false} = :sys.get_state(network)
          end)

        assert log =~ "which was not offered"
      end
    end

    for {offer, answer} <- [{"1.1,1.2", "version: 1.1 "}, {"1.0", ""}, {nil, "version:1.2"}] do
      test "#{inspect(answer)} to #{inspect(offer)} is accepted" do
        headers = for offer <- List.wrap(unquote(offer)), do: {"accept-version", offer}
        {_network, peer} = connect()
        sender = connected(peer, headers, answer(unquote(answer)))
        assert Sender.write(sender, [%Frame{command: :ack}], :sync) == :ok
      end
    end
  end

  test "a client tries the next broker when the version of the answer was not offered" do
    {listener, url} = ClientCase.broker()
    {good, good_url} = ClientCase.broker()
    client = start_supervised!({Client, urls: [url, good_url], listener: self()})
    publishing = Task.async(fn -> Client.publish(client, "/a", "", wait: true) end)
    {peer, _connect} = ClientCase.accept(listener)
    ClientCase.reply(peer, :connected, [{"version", "2.0"}])
    peer = ClientCase.accept_connected(good)
    ClientCase.confirm(peer, :send)
    assert Task.await(publishing) == :ok
    assert %{connections: 1} = Client.status(client)
    event = {:connection_failure, Barytherium.Error.new(:unsupported_version)}
    assert_receive {:barytherium, :client, {^event, ^client}}
  end

  test "in 1.0 the blanks around receipt-id and subscription do not count" do
    {listener, url} = ClientCase.broker()
    client = start_supervised!({Client, url: url, versions: ["1.0"]})
    peer = ClientCase.accept_connected(listener, [{"session", " x"}])
    publishing = Task.async(fn -> Client.publish(client, "/a", "", wait: true) end)
    {%{"receipt" => receipt}, ""} = ClientCase.expect(peer, :send)
    Peer.send(peer, "RECEIPT\nreceipt-id: #{receipt} \n\n\0")
    assert Task.await(publishing) == :ok

    test = self()
    subscribing = Task.async(fn -> Client.subscribe(client, "/a", to: test, ack: :client) end)
    {%{"id" => id}, ""} = ClientCase.confirm(peer, :subscribe)
    assert {:ok, _subscription} = Task.await(subscribing)
    Peer.send(peer, "MESSAGE\nsubscription: #{id}\nmessage-id:1\n\nhi\0")
    assert_receive {:barytherium, :messages, {[%Frame{body: "hi"} = message], _subscription}}
    assert Client.ack(client, message) == :ok
    assert {%{"message-id" => "1"}, ""} = ClientCase.expect(peer, :ack)
  end

  describe "an ERROR without a blank line" do
    test "tells why the login was refused" do
      log =
        capture_log(fn ->
          {_network, peer} = connect()
          assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
          Peer.send_all(peer, "ERROR\nmessage: no such user\0")
          assert_disconnect(:closed)
        end)

      assert log =~ "refused the connection: no such user"
    end

    test "tells why the connection ended" do
      log =
        capture_log(fn ->
          {_network, peer} = connect()
          connected(peer, [], "CONNECTED\nversion:1.2\n\n\0")
          Peer.send_all(peer, "ERROR\nmessage: shutting down\0")
          assert_disconnect(:closed)
        end)

      assert log =~ "ended the connection with an ERROR: shutting down"
    end

    test "is no reason when it is this side that ends the connection" do
      log =
        capture_log(fn ->
          {socket, peer} = Peer.pair()
          listener = spawn(fn -> Process.sleep(:infinity) end)

          {:ok, _receiver} =
            Barytherium.Network.Receiver.start_link(socket, listener, self(), self())

          Peer.send(peer, "CONNECTED\nversion:1.2\n\n\0")
          assert_receive {:"$gen_call", from, {:connected_frame, _frame}}
          GenServer.reply(from, {0, 0})
          Peer.send(peer, "ERROR\nmessage: x")
          # It has read this when it waits again.
          eventually(fn -> Barytherium.Native.live_connections() > 0 end)
          Process.sleep(50)
          Process.exit(listener, :kill)
          assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
          Peer.close(peer)
        end)

      refute log =~ "ERROR"
    end

    test "is a time-out, with the reason, if the server does not close" do
      log =
        capture_log(fn ->
          {_network, peer} = connect(self(), first_frame_timeout: 200)
          assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
          Peer.send(peer, "ERROR\nmessage: no\0")
          assert_disconnect(:timeout)
        end)

      assert log =~ "refused the connection: no"
    end
  end

  describe "a server that does not close after the receipt of the DISCONNECT" do
    for transport <- [:tcp, :tls, :ssl, :ws, :wss] do
      test "is closed by Network.close/2 (#{transport})" do
        log =
          capture_log(fn ->
            opts = Peer.options(unquote(transport))
            {network, peer} = connect(self(), opts, unquote(transport))
            Process.put(:port, :sys.get_state(network).port)
            connected(peer, [], "CONNECTED\nversion:1.2\n\n\0")
            closing = Task.async(fn -> Network.close(network) end)
            {:ok, "DISCONNECT\nreceipt:" <> rest} = Peer.recv(peer)
            [receipt | _] = String.split(rest, "\n")
            Peer.send(peer, "RECEIPT\nreceipt-id:#{receipt}\n\n\0\nMESSAGE\n\nlate\0")
            assert Task.await(closing) == :ok
            assert [%Frame{command: :receipt}] = frames()
            assert_disconnect(:closed)
            Peer.assert_closed(peer)
          end)

        # Others may log this of their connections.
        refute log =~ "127.0.0.1:#{Process.get(:port)} closed the TLS"
      end
    end

    test "is closed by Client.close/1" do
      {listener, url} = ClientCase.broker()
      client = start_supervised!({Client, url: url}, restart: :temporary)
      peer = ClientCase.accept_connected(listener)
      publishing = Task.async(fn -> Client.publish(client, "/a", "", wait: true) end)
      ClientCase.confirm(peer, :send)
      assert Task.await(publishing) == :ok
      closing = Task.async(fn -> Client.close(client) end)
      ClientCase.confirm(peer, :disconnect)
      assert Task.await(closing) == :ok
    end
  end
end
