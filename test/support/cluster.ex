defmodule Barytherium.Cluster do
  @moduledoc "A cluster of RabbitMQ nodes on the loopback interface."

  alias Barytherium.Broker
  alias Barytherium.Brokers.RabbitMQ

  @doc "Starts `count` nodes, one after the other. Each joins those before it."
  def start!(count) do
    nodes = for _n <- 1..count, do: Broker.prepare!(RabbitMQ)
    names = Enum.map(nodes, &variable(&1, "RABBITMQ_NODENAME"))
    first = hd(nodes)
    # The nodes find each other through one epmd, and have the same cookie, which is in `HOME`.
    shared = for name <- ["HOME", "ERL_EPMD_PORT"], do: {name, variable(first, name)}

    for node <- nodes do
      File.write!(Path.join(node.directory, "rabbitmq.conf"), discovery(names), [:append])

      environment =
        Enum.reduce(shared, node.environment, fn {name, value}, environment ->
          List.keystore(environment, name, 0, {name, value})
        end)

      Broker.start_again!(%{node | environment: environment})
    end
  end

  def stop(nodes), do: Enum.each(nodes, &Broker.stop/1)

  defp variable(broker, name) do
    {_name, value} = List.keyfind(broker.environment, name, 0)
    value
  end

  # The first node does not wait for others.
  defp discovery(names) do
    nodes =
      for {name, number} <- Enum.with_index(names, 1),
          do: "cluster_formation.classic_config.nodes.#{number} = #{name}\n"

    """
    cluster_formation.peer_discovery_backend = classic_config
    cluster_formation.discovery_retry_limit = 1
    #{nodes}
    """
  end
end
