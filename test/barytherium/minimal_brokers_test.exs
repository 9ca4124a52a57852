defmodule Barytherium.MinimalBrokersTest do
  # Servers that do less than the specification asks for.
  use Barytherium.ClientCase, async: true

  defmodule Echo do
    use Barytherium.Consumer

    @impl true
    def handle_message(%{body: body}, test) do
      send(test, {:handled, body})
      {:ack, test}
    end
  end

  defp connected(headers) do
    {listener, url} = broker()
    client = start_supervised!({Client, url: url})
    {client, accept_connected(listener, headers)}
  end

  defp subscribe(client, opts \\ []) do
    test = self()
    Task.async(fn -> Client.subscribe(client, "/queue/a", [to: test] ++ opts) end)
  end

  defp messages do
    assert_receive {:barytherium, :messages, {frames, subscription}}
    {Enum.map(frames, & &1.body), hd(frames), subscription}
  end

  describe "messages of 1.0 without a subscription header" do
    test "go by their destination to the subscription, and can be acknowledged" do
      {client, peer} = connected([])
      {subscription, _headers} = subscribed(client, peer, ack: :client)

      log =
        capture_log(fn ->
          reply(peer, :message, [{"destination", "/queue/a"}, {"message-id", "1"}], "one")
          assert {["one"], message, ^subscription} = messages()
          assert Client.ack(client, message) == :ok
          assert {%{"message-id" => "1"}, ""} = expect(peer, :ack)
          reply(peer, :message, [{"destination", "/queue/a"}, {"message-id", "2"}], "two")
          assert {["two"], _message, ^subscription} = messages()
          assert %{state: :connected} = Client.status(client)
        end)

      assert [_, _] = String.split(log, "does not say which subscription")
    end

    test "are handled by a consumer with several subscriptions" do
      {listener, url} = broker()
      opts = [url: url, init_arg: self(), subscribe: ["/queue/a", {"/queue/b", ack: :auto}]]
      {:ok, _consumer} = Echo.start_link(opts)
      peer = accept_connected(listener, [])
      confirm(peer, :subscribe)
      confirm(peer, :subscribe)

      for name <- ["b", "a"] do
        headers = [{"destination", "/queue/#{name}"}, {"message-id", name}]
        reply(peer, :message, headers, name)
        assert_receive {:handled, ^name}
      end

      assert {%{"message-id" => "a"}, ""} = expect(peer, :ack)
    end
  end

  describe "without receipts for SUBSCRIBE" do
    test "a first message confirms a subscription" do
      {client, peer} = connected([{"version", "1.2"}])
      subscribing = subscribe(client)
      {%{"id" => id}, ""} = expect(peer, :subscribe)
      message(peer, id, "x")
      assert {:ok, subscription} = Task.await(subscribing)
      assert {["x"], _message, ^subscription} = messages()
    end

    test "a first message confirms a subscription that is renewed" do
      {listener, url} = broker()
      {:ok, consumer} = Echo.start_link(url: url, init_arg: self(), subscribe: "/queue/a")
      peer = accept_connected(listener)
      {%{"id" => id}, ""} = expect(peer, :subscribe)
      message(peer, id, "x")
      [client] = Barytherium.Consumer.clients(consumer)
      eventually(fn -> Client.status(client).unconfirmed == 0 end)
    end

    test "receipt: false does not wait for one" do
      {client, peer} = connected([{"version", "1.2"}])
      subscribing = subscribe(client, receipt: false, ack: :auto)
      {headers, ""} = expect(peer, :subscribe)
      assert {:ok, subscription} = Task.await(subscribing)
      refute Map.has_key?(headers, "receipt")
      message(peer, headers["id"], "x")
      assert {["x"], _message, ^subscription} = messages()
      assert Client.unsubscribe(client, subscription) == :ok
      {headers, ""} = expect(peer, :unsubscribe)
      refute Map.has_key?(headers, "receipt")
    end
  end

  describe "messages of 1.2 without an ack header" do
    test "cannot be acknowledged, and the caller is told" do
      {client, peer} = connected([{"version", "1.2"}])
      {_subscription, %{"id" => id}} = subscribed(client, peer)
      reply(peer, :message, [{"subscription", id}, {"message-id", "1"}], "x")
      assert {["x"], message, _subscription} = messages()

      assert Client.ack(client, message) ==
               {:error, %Barytherium.Error{reason: :unacknowledgeable}}

      assert Client.nack(client, message) ==
               {:error, %Barytherium.Error{reason: :unacknowledgeable}}
    end

    test "are logged once by a consumer" do
      {_consumer, peer, id, _listener} = start_consumer(Echo, subscribe: "/queue/a")

      log =
        capture_log(fn ->
          for body <- ["1", "2"] do
            reply(peer, :message, [{"subscription", id}, {"message-id", body}], body)
            assert_receive {:handled, ^body}
          end
        end)

      assert [_, _] = String.split(log, "leaves out the header")
    end

    test "do not take the acknowledgement of others with them" do
      opts = [subscribe: {"/queue/a", ack: :client}]
      {_consumer, peer, id, _listener} = start_consumer(Echo, opts)
      frame = &"MESSAGE\nsubscription:#{id}\nmessage-id:1\n#{&1}\nx\0"

      log =
        capture_log(fn ->
          Peer.send(peer, [frame.("ack:1\n"), frame.("")])
          assert {%{"id" => "1"}, ""} = expect(peer, :ack)
        end)

      assert log =~ "leaves out the header"
    end
  end
end
