defmodule Barytherium.DurableTest do
  @moduledoc "The end of durable subscriptions, and headers that come from functions, with a scripted broker."
  use Barytherium.ClientCase, async: true

  defp connected(server, opts \\ []) do
    {listener, url} = broker()
    client = start_supervised!({Client, [url: url, backoff: {20, 100}] ++ opts}, id: make_ref())
    peer = accept_connected(listener, [{"version", "1.2"}, {"server", server}])
    eventually(fn -> Client.status(client).state == :connected end)
    {client, peer, listener}
  end

  describe "unsubscribe" do
    test "deletes as each broker has it, and has further headers" do
      for {server, own, others} <- [
            {"RabbitMQ/3.10.8", %{"durable" => "true", "x-queue-name" => "n"}, 0},
            {"ActiveMQ/5.17.2", %{}, 1},
            {"ActiveMQ-Artemis/2.28", %{"durable-subscription-name" => "n"}, 0},
            {"other", %{"x-queue-name" => "n", "activemq.subscriptionName" => "n"}, 0}
          ] do
        {client, peer, _listener} = connected(server)
        {subscription, %{"id" => id}} = subscribed(client, peer, durable: "n")
        opts = [delete: true, headers: [{"a", "b"}]]
        ending = Task.async(fn -> Client.unsubscribe(client, subscription, opts) end)
        {headers, ""} = confirm(peer, :unsubscribe)
        assert Map.take(headers, Map.keys(own)) == own
        assert %{"id" => ^id, "a" => "b"} = headers

        for _n <- 1..others//1 do
          {headers, ""} = confirm(peer, :unsubscribe)
          assert %{"id" => ^id, "activemq.subscriptionName" => "n"} = headers
        end

        assert Task.await(ending) == :ok
        assert Client.status(client).subscriptions == 0
      end
    end

    test "keeps a durable subscription otherwise" do
      {client, peer, _listener} = connected("ActiveMQ/5.17.2")
      {subscription, _headers} = subscribed(client, peer, durable: "n")
      ending = Task.async(fn -> Client.unsubscribe(client, subscription) end)
      {headers, ""} = confirm(peer, :unsubscribe)
      assert Enum.sort(Map.keys(headers)) == ["id", "receipt"]
      assert Task.await(ending) == :ok
    end

    test "deletes nothing that the broker has refused" do
      {client, peer, listener} = connected("RabbitMQ/3.10.8")
      {subscription, _headers} = subscribed(client, peer, durable: "n")
      Peer.close(peer)
      peer = accept_connected(listener, [{"version", "1.2"}, {"server", "RabbitMQ/3.10.8"}])
      {refused, ""} = expect(peer, :subscribe)
      reply(peer, :error, [{"receipt-id", refused["receipt"]}])
      eventually(fn -> Client.status(client).unconfirmed == 0 end)
      error = Client.unsubscribe(client, subscription, delete: true)
      assert {:error, %{reason: :not_subscribed}} = error
      assert Client.status(client).subscriptions == 1
    end

    test "deletes nothing without a connection, or of what is not durable" do
      {client, peer, _listener} = connected("RabbitMQ/3.10.8")
      {subscription, _headers} = subscribed(client, peer)
      error = Client.unsubscribe(client, subscription, delete: true)
      assert {:error, %{reason: :not_durable}} = error
      assert Client.status(client).subscriptions == 1
      {durable, _headers} = subscribed(client, peer, durable: "n")
      :sys.suspend(client)
      Peer.close(peer)
      :sys.resume(client)
      eventually(fn -> Client.status(client).state != :connected end)
      error = Client.unsubscribe(client, durable, delete: true)
      assert {:error, %{reason: :disconnected}} = error
      assert Client.status(client).subscriptions == 2

      for opts <- [[headers: [{"id", "1"}]], [delete: :yes], [other: 1]] do
        assert_raise ArgumentError, fn -> Client.unsubscribe(client, durable, opts) end
      end
    end
  end

  describe "a function for headers" do
    defp counting(name) do
      {:ok, counter} = Agent.start_link(fn -> 0 end)
      fn -> [{name, "#{Agent.get_and_update(counter, &{&1, &1 + 1})}"}] end
    end

    test "is called for each connection" do
      opts = [headers: counting("token"), client_id: "me"]
      {listener, url} = broker()
      client = start_supervised!({Client, [url: url, backoff: {20, 100}] ++ opts})
      {peer, connect} = accept(listener)
      reply(peer, :connected, [{"version", "1.2"}])
      assert %{"token" => "0", "client-id" => "me"} = Frame.headers_to_map(connect.headers)
      eventually(fn -> Client.status(client).state == :connected end)
      {_subscription, headers} = subscribed(client, peer, headers: counting("key"))
      assert headers["key"] == "0"

      for n <- 1..2, reduce: peer do
        peer ->
          Peer.close(peer)
          {peer, connect} = accept(listener)
          assert Frame.header(connect, "token") == "#{n}"
          reply(peer, :connected, [{"version", "1.2"}])
          assert {%{"key" => key}, ""} = confirm(peer, :subscribe)
          assert key == "#{n}"
          peer
      end
    end

    test "of a consumer is called for each connection too" do
      defmodule Consuming do
        use Barytherium.Consumer

        @impl true
        def handle_message(_frame, state), do: {:ack, state}
      end

      {listener, url} = broker()
      subscribe = {"/queue/a", headers: counting("key")}
      start_supervised!({Consuming, url: url, subscribe: subscribe, backoff: {20, 100}})

      for n <- 0..1 do
        peer = accept_connected(listener)
        assert {%{"key" => key}, ""} = confirm(peer, :subscribe)
        assert key == "#{n}"
        Peer.close(peer)
      end
    end

    test "of a subscription that fails on a later connection does not hinder the others" do
      {:ok, works} = Agent.start_link(fn -> true end)

      headers = fn ->
        if Agent.get(works, & &1), do: [{"key", "1"}], else: raise("hunter2")
      end

      {client, peer, listener} = connected("other")
      {_subscription, %{"key" => "1"}} = subscribed(client, peer, headers: headers)
      Agent.update(works, fn _works -> false end)

      log =
        capture_log(fn ->
          Peer.close(peer)
          peer = accept_connected(listener)
          assert {%{"key" => "1"}, ""} = confirm(peer, :subscribe)
        end)

      assert log =~ "the function for the headers of /queue/a failed (RuntimeError)"
      refute log =~ "hunter2"
    end

    test "that fails is an attempt that failed, and shows nothing" do
      for function <- [
            fn -> raise "hunter2" end,
            fn -> [:hunter2] end,
            fn -> [{"login", "hunter2"}] end
          ] do
        log =
          capture_log(fn ->
            Process.flag(:trap_exit, true)
            opts = [url: "stomp://localhost:1", headers: function, max_attempts: 1]
            {:ok, client} = Client.start_link(opts)
            assert_receive {:EXIT, ^client, {:shutdown, {:max_attempts, :credentials}}}
          end)

        refute log =~ "hunter2"
      end

      {client, _peer, _listener} = connected("other")

      assert_raise RuntimeError, fn ->
        Client.subscribe(client, "/queue/a", headers: fn -> raise "mine" end)
      end
    end
  end
end
