// SPDX-License-Identifier: Apache-2.0
// Asks the node where something is: `ros2 run robobrain_cpp_example point_to "the red mug"`.

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>

#include <rclcpp/rclcpp.hpp>
#include <robobrain_ros/msg/lifted_point.hpp>
#include <robobrain_ros/srv/point_to.hpp>

using robobrain_ros::msg::LiftedPoint;
using robobrain_ros::srv::PointTo;

int main(int argc, char ** argv)
{
  const auto words = rclcpp::init_and_remove_ros_arguments(argc, argv);
  const auto node = std::make_shared<rclcpp::Node>("point_to_client");
  const auto client = node->create_client<PointTo>("robobrain/point_to");
  if (!client->wait_for_service(std::chrono::seconds(10))) {
    std::cerr << "There is no service " << client->get_service_name() << ": start the node.\n";
    return EXIT_FAILURE;
  }
  auto request = std::make_shared<PointTo::Request>();
  request->query = words.size() > 1 ? words[1] : "the red mug";
  auto answer = client->async_send_request(request);
  if (rclcpp::spin_until_future_complete(node, answer, std::chrono::seconds(60)) !=
    rclcpp::FutureReturnCode::SUCCESS)
  {
    std::cerr << "No answer within 60 s.\n";
    return EXIT_FAILURE;
  }
  const auto response = answer.get();
  if (!response->success) {
    std::cerr << response->error_msg << '\n';
    return EXIT_FAILURE;
  }
  for (const auto & point : response->points) {
    std::cout << "pixel (" << point.pixel.x << ", " << point.pixel.y << ")";
    if (point.status == LiftedPoint::OK) {
      const auto & at = point.pose.pose.position;
      std::cout << " at (" << at.x << ", " << at.y << ", " << at.z << ") in "
                << point.pose.header.frame_id;
    }
    std::cout << '\n';
  }
  rclcpp::shutdown();
  return EXIT_SUCCESS;
}
