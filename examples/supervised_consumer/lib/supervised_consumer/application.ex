defmodule SupervisedConsumer.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    broker = Application.fetch_env!(:supervised_consumer, :broker)
    Supervisor.start_link([{SupervisedConsumer.Orders, broker}], strategy: :one_for_one)
  end
end
