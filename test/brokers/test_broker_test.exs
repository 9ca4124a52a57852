# `Barytherium.TestBroker` against the brokers that it imitates.
for {kind, like} <- [
      {Barytherium.Brokers.RabbitMQ, :rabbitmq},
      {Barytherium.Brokers.ActiveMQ, :activemq}
    ] do
  defmodule Module.concat(kind, TestBrokerTest) do
    use Barytherium.BrokerCase, async: true, broker: kind, own: true

    alias Barytherium.{BrokerScript, TestBroker}

    @like like
    # The last two are the first that need what RabbitMQ does with full subscriptions, and ActiveMQ with what comes back.
    @seeds [1, 2, 3, 4, 5, 6, 7, 8, 16, 53]
    @steps 60

    defp seeds(nil), do: @seeds
    defp seeds(count), do: Enum.to_list(1..String.to_integer(count))

    @tag timeout: :infinity
    test "random scripts have the same trace on the test broker and on #{inspect(kind)}", %{
      broker: broker
    } do
      test_broker = start_supervised!({TestBroker, like: @like})

      for seed <- seeds(System.get_env("BROKER_SCRIPTS")) do
        :rand.seed(:exsss, seed)
        {steps, expected} = BrokerScript.random(@like, @steps)
        assert {seed, BrokerScript.play(steps, TestBroker.port(test_broker))} == {seed, expected}
        assert {seed, BrokerScript.play(steps, broker.port)} == {seed, expected}
      end
    end
  end
end
